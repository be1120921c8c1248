package scylla

import (
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// flights has the entries that are on their way into inboxes, by session.
//
// Rows land in any order. Did a read show an entry before one that was committed
// earlier has landed, its reader would go on behind the gap and never come back.
// So a read shows of each inbox what a prefix of the commits has put there: an
// entry is hidden while its batch, or an earlier one with entries for the same
// inbox, is under way, and from a read that had begun before.
//
// What waits for a database that is away is not waited for (see line.pass).
type flights struct {
	shards [64]struct {
		mu sync.Mutex
		of map[herald.SessionID]*flight
	}
}

// flight is what is on its way to one inbox.
type flight struct {
	first   int      // number of parcels[0]; they are numbered as they come
	parcels []parcel // in the order of the commits
	readers int
}

// parcel is what one batch puts there.
type parcel struct {
	job  *job
	msgs []*herald.Message
	done bool
}

func (f *flights) shard(id herald.SessionID) (mu *sync.Mutex, of map[herald.SessionID]*flight) {
	s := &f.shards[(uint64(id)*0x9e3779b97f4a7c15)>>58]
	s.mu.Lock()
	if s.of == nil {
		s.of = make(map[herald.SessionID]*flight)
	}
	return &s.mu, s.of
}

// depart notes the entries of a job; arrive forgets them.
func (f *flights) depart(j *job, sp *persistence.Spread) {
	for i := range sp.Targets {
		id := sp.Targets[i].Session
		mu, of := f.shard(id)
		fl := of[id]
		if fl == nil {
			fl = new(flight)
			of[id] = fl
		}
		fl.parcels = append(fl.parcels, parcel{job: j, msgs: sp.Messages})
		mu.Unlock()
	}
}

func (f *flights) arrive(j *job, sp *persistence.Spread) {
	for i := range sp.Targets {
		id := sp.Targets[i].Session
		mu, of := f.shard(id)
		if fl := of[id]; fl != nil {
			for k := range fl.parcels {
				if fl.parcels[k].job == j && !fl.parcels[k].done {
					fl.parcels[k].done = true
					break
				}
			}
			fl.popLocked(of, id)
		}
		mu.Unlock()
	}
}

// popLocked forgets what has arrived, unless somebody reads.
func (fl *flight) popLocked(of map[herald.SessionID]*flight, id herald.SessionID) {
	if fl.readers > 0 {
		return
	}
	n := 0
	for n < len(fl.parcels) && fl.parcels[n].done {
		n++
	}
	fl.first += n
	fl.parcels = append(fl.parcels[:0], fl.parcels[n:]...)
	if len(fl.parcels) == 0 {
		delete(of, id)
	}
}

// view is what a read must not show.
type view struct {
	f      *flights
	id     herald.SessionID
	from   int // parcels from here on are hidden
	seen   int // those before are in hidden
	hidden map[int64]bool
}

// look begins a read.
func (f *flights) look(id herald.SessionID) *view {
	mu, of := f.shard(id)
	defer mu.Unlock()
	fl := of[id]
	if fl == nil {
		fl = new(flight)
		of[id] = fl
	}
	fl.readers++
	v := &view{f: f, id: id, from: fl.first}
	for _, p := range fl.parcels {
		if !p.done && !p.job.passed.Load() {
			break
		}
		v.from++
	}
	v.seen = v.from
	return v
}

// hides tells whether an entry that was just read is hidden.
func (v *view) hides(id int64) bool {
	mu, of := v.f.shard(v.id)
	fl := of[v.id]
	for ; v.seen < fl.first+len(fl.parcels); v.seen++ {
		if v.hidden == nil {
			v.hidden = make(map[int64]bool)
		}
		for _, m := range fl.parcels[v.seen-fl.first].msgs {
			v.hidden[int64(m.ID)] = true
		}
	}
	mu.Unlock()
	return v.hidden[id]
}

// end ends it.
func (v *view) end() {
	mu, of := v.f.shard(v.id)
	defer mu.Unlock()
	fl := of[v.id]
	fl.readers--
	fl.popLocked(of, v.id)
}
