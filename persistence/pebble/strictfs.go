package pebble

import (
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// strictFS is the file system as Pebble sees it, and gives it the end that it
// counts on. Pebble expects that the process is gone after a fatal error: its
// other goroutines, if they went on, would write a manifest that lacks the edit
// that failed, and what is missing then would pass for applied. So once the
// database has died, whoever wants to write waits for the end of the process
// (ending the goroutine would be tidier, but it may hold or owe any lock). And a
// folder that cannot be synced, over which Pebble panics, is one more fatal
// error.
type strictFS struct {
	vfs.FS
	s *Store
}

// alive does not return if the database has died.
func (s *Store) alive() {
	select {
	case <-s.health.died:
		select {}
	default:
	}
}

// stopHere ends the calling goroutine, which is Pebble's, and the database.
func (s *Store) stopHere(why string) {
	s.die(why)
	runtime.Goexit()
}

func (f strictFS) Unwrap() vfs.FS { return f.FS }

func (f strictFS) file(file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return strictFile{file, f.s}, nil
}

// Create makes a file. A marker is one whose name says which manifest counts, and the
// manifest's name is durable first: Pebble syncs the folder once, when both are there.
func (f strictFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f.s.alive()
	if strings.HasPrefix(f.FS.PathBase(name), "marker.") {
		if err := syncDir(f.FS, f.FS.PathDir(name)); err != nil {
			return nil, err
		}
	}
	return f.file(f.FS.Create(name, c))
}

func (f strictFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f.s.alive()
	return f.file(f.FS.OpenReadWrite(name, c, opts...))
}

func (f strictFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f.s.alive()
	return f.file(f.FS.ReuseForWrite(oldname, newname, c))
}

func (f strictFS) OpenDir(name string) (vfs.File, error) {
	d, err := f.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return strictDir{d, f.s}, nil
}

func (f strictFS) Link(oldname, newname string) error {
	f.s.alive()
	return f.FS.Link(oldname, newname)
}

func (f strictFS) Remove(name string) error {
	f.s.alive()
	return f.FS.Remove(name)
}

func (f strictFS) RemoveAll(name string) error {
	f.s.alive()
	return f.FS.RemoveAll(name)
}

func (f strictFS) Rename(oldname, newname string) error {
	f.s.alive()
	return f.FS.Rename(oldname, newname)
}

func (f strictFS) Lock(name string) (io.Closer, error) {
	f.s.alive()
	return f.FS.Lock(name)
}

// strictFile is a file that Pebble writes.
type strictFile struct {
	vfs.File
	s *Store
}

func (f strictFile) Write(p []byte) (int, error) {
	f.s.alive()
	return f.File.Write(p)
}

func (f strictFile) WriteAt(p []byte, off int64) (int, error) {
	f.s.alive()
	return f.File.WriteAt(p, off)
}

func (f strictFile) Sync() error {
	f.s.alive()
	return f.File.Sync()
}

func (f strictFile) SyncData() error {
	f.s.alive()
	return f.File.SyncData()
}

func (f strictFile) SyncTo(length int64) (bool, error) {
	f.s.alive()
	return f.File.SyncTo(length)
}

// strictDir is a folder of Pebble's.
type strictDir struct {
	vfs.File
	s *Store
}

func (d strictDir) Sync() error {
	d.s.alive()
	err := d.File.Sync()
	if err != nil {
		d.s.stopHere(fmt.Sprintf("sync of a folder: %v", err))
	}
	return err
}
