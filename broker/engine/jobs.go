package engine

import "sync"

// jobs are the goroutines that run in the background, which begin others. A
// sync.WaitGroup would not do: what still runs while Stop waits, or a frame that
// comes then, begins more of them, and that panics when it happens as the last one
// ends. The zero value is ready.
type jobs struct {
	mu   sync.Mutex // guards below
	n    int
	over bool
	none chan struct{} // closed when the last has ended; nil if nobody waits
}

// run runs f on a goroutine of its own, unless all have ended for good.
func (j *jobs) run(f func()) {
	j.mu.Lock()
	if j.over {
		j.mu.Unlock()
		return
	}
	j.n++
	j.mu.Unlock()
	go func() {
		defer j.ended()
		f()
	}()
}

func (j *jobs) ended() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.n--; j.n == 0 && j.none != nil {
		j.over = true
		close(j.none)
		j.none = nil
	}
}

// end waits until none runs; from then on none will. It is called once.
func (j *jobs) end() {
	j.mu.Lock()
	if j.n == 0 {
		j.over = true
		j.mu.Unlock()
		return
	}
	none := make(chan struct{})
	j.none = none
	j.mu.Unlock()
	<-none
}
