package simulation

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/persistence"
)

// Database is what [Shared] stores stand on: rows, each with a timestamp, in
// partitions. A write is atomic within its partition and nowhere else. Writes
// land in any order, some of them after the process that made them has died: of
// two writes of a row the one with the later timestamp wins; between a value and
// its removal with the same timestamp, the removal.
type Database struct {
	// Fixed at construction.
	rng *rand.Rand // of the world: used where the world calls
	// again is out of how many writes one lands a second time, later, as one does
	// that was sent again when its answer had been lost. 0: none.
	again int

	mu      sync.Mutex // guards below, and all stores that stand on it
	parts   map[place]*partition
	late    []*write // of processes that are gone; may land yet
	claims  map[string]persistence.Claim
	members map[uint16]persistence.Member
	lives   map[uint16]uint64 // by node: runs of its process, for intents
	clocks  map[uint16]int64  // by node: the highest timestamp that it gave out, or may have
	ids     map[uint16]herald.ID
	past    map[uint16]int64            // by node: clocks of lives before the one that its row shows
	owed    map[uint16]uint64           // by node: the first of its lives that the one which goes on in their place owes
	plans   map[int64]plan              // by run: what was found of a dead life
	names   map[herald.SessionID]string // keys of clients' claims
	wrong   error                       // a rule that was broken
	failed  bool                        // a commit has, for want of an answer
	lose    int                         // out of how many answers one is lost; 0: none
	maxID   herald.ID                   // highest that was seen
}

// place names a partition.
type place struct {
	table table
	a     int64
	name  string
}

type table byte

const (
	tableSession      table = iota // kind and name of a session
	tableSubscription              // session; filter
	tableWindow                    // session; slot, key
	tableInbox                     // session; ID
	tablePayload                   // ID
	tableRetained                  // topic
	tableIndex                     // -; topic
	tableWill                      // -; session
	tableExpiry                    // -; moment, key of the session
	tableIntent                    // run of a process; number
	tableNode                      // -; node: the first run whose intents may not be finished
)

// column is a row's key within its partition.
type column struct {
	slot int8
	key  int64
	name string
}

func (a column) compare(b column) int {
	return cmp.Or(cmp.Compare(a.slot, b.slot), cmp.Compare(a.key, b.key), cmp.Compare(a.name, b.name))
}

// partition is the rows of one place.
type partition struct {
	rows  map[column]cell
	order []column // of rows, rising
	gone  []removal
}

// cell is what stands in a row.
type cell struct {
	ts    int64
	value any // nil: removed
}

// removal is one of many rows.
type removal struct {
	all  bool // the whole partition; else
	slot int8 // this slot's
	upTo int64
	ts   int64
}

func (r removal) covers(c column) bool { return r.all || c.slot == r.slot && c.key <= r.upTo }

// mutation is one change of a partition.
type mutation struct {
	at    column
	ts    int64
	value any
	many  *removal // instead
}

// write is what lands as a whole.
type write struct {
	place place
	muts  []mutation
	job   *job
}

// NewDatabase returns an empty one.
func NewDatabase(rng *rand.Rand, again int) *Database {
	return &Database{
		rng: rng, again: again, parts: map[place]*partition{}, claims: map[string]persistence.Claim{},
		members: map[uint16]persistence.Member{}, lives: map[uint16]uint64{}, clocks: map[uint16]int64{}, ids: map[uint16]herald.ID{}, past: map[uint16]int64{}, owed: map[uint16]uint64{},
		plans: map[int64]plan{}, names: map[herald.SessionID]string{},
	}
}

// wins tells whether a replaces b.
func (a cell) wins(b cell) bool {
	if a.ts != b.ts || a.value == nil || b.value == nil {
		return a.ts > b.ts || a.ts == b.ts && a.value == nil
	}
	// Between values the greater one: those that can differ begin with an ID.
	x, _ := a.value.(*herald.Message)
	y, _ := b.value.(*herald.Message)
	return x != nil && y != nil && x.ID > y.ID
}

func (d *Database) landLocked(w *write) {
	p := d.parts[w.place]
	if p == nil {
		p = &partition{rows: map[column]cell{}}
		d.parts[w.place] = p
	}
	for _, m := range w.muts {
		if m.many != nil {
			p.remove(*m.many)
			continue
		}
		c := cell{m.ts, m.value}
		if slices.ContainsFunc(p.gone, func(r removal) bool { return r.covers(m.at) && r.ts >= c.ts }) {
			continue
		}
		old, ok := p.rows[m.at]
		if !ok {
			i, _ := slices.BinarySearchFunc(p.order, m.at, column.compare)
			p.order = slices.Insert(p.order, i, m.at)
		}
		if !ok || c.wins(old) {
			p.rows[m.at] = c
		}
	}
}

func (p *partition) remove(r removal) {
	p.order = slices.DeleteFunc(p.order, func(at column) bool {
		if !r.covers(at) || p.rows[at].ts > r.ts {
			return false
		}
		delete(p.rows, at)
		return true
	})
	p.gone = slices.DeleteFunc(p.gone, func(o removal) bool {
		return o.ts <= r.ts && (r.all || !o.all && o.slot == r.slot && o.upTo <= r.upTo)
	})
	p.gone = append(p.gone, r)
}

// lateLocked lands some of what comes late, if any.
func (d *Database) lateLocked() {
	if n := len(d.late); n > 0 && d.rng.IntN(4) == 0 {
		i := d.rng.IntN(n)
		d.landLocked(d.late[i])
		d.late = slices.Delete(d.late, i, i+1)
	}
}

// one returns the value of a row.
func (d *Database) oneLocked(at place, c column) any {
	if p := d.parts[at]; p != nil {
		return p.rows[c].value
	}
	return nil
}

// row is one that was read.
type row struct {
	at    column
	value any
}

// rowsLocked returns the rows of a partition, in order.
func (d *Database) rowsLocked(at place) []row {
	p := d.parts[at]
	if p == nil {
		return nil
	}
	all := make([]row, 0, len(p.rows))
	for _, c := range p.order {
		if v := p.rows[c].value; v != nil {
			all = append(all, row{c, v})
		}
	}
	return all
}

// placesLocked returns the partitions of a table, in order.
func (d *Database) placesLocked(t table) []place {
	var all []place
	for at := range d.parts {
		if at.table == t {
			all = append(all, at)
		}
	}
	slices.SortFunc(all, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.a, b.a), cmp.Compare(a.name, b.name))
	})
	return all
}

// watch checks that what is written of a client's session is written by its owner.
func (d *Database) watch(s *Shared, b *persistence.Batch) {
	if !s.cluster {
		return
	}
	for _, r := range b.Sessions {
		if r.Kind == persistence.Client {
			d.names[r.ID] = claimKey(r.Kind, r.Name)
		}
	}
	check := func(id herald.SessionID, what string) {
		key, ok := d.names[id]
		if c := d.claims[key]; ok && d.wrong == nil && (c.Owner != s.node || c.Life != s.life) {
			d.wrong = fmt.Errorf("node %d/%d writes %s of %q, which is node %d/%d's", s.node, s.life, what, key[1:], c.Owner, c.Life)
		}
	}
	for _, x := range b.Held {
		check(x.Session, "a packet id")
	}
	for _, x := range b.Sent {
		check(x.Session, "a packet id")
	}
	for _, x := range b.Marks {
		check(x.Session, "a mark")
	}
	for _, x := range b.Subscribe {
		check(x.Session, "a subscription")
	}
	for _, x := range b.Unsubscribe {
		check(x.Session, "a subscription")
	}
}

// paid notes that a node's life has finished what it owed.
func (d *Database) paid(node uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.owed, node)
}

// claimed checks that a claim goes from its owner, or from who is dead.
func (d *Database) claimed(by *Shared, key string, old persistence.Claim) {
	if key[0] == byte(persistence.Wills) {
		return // who buries a life takes what that had in its care
	}
	m := d.members[old.Owner]
	owed := d.owed[old.Owner] != 0 && d.owed[old.Owner] <= old.Life
	if old.Epoch == 0 || by.node == old.Owner && by.life == old.Life || m.Life > old.Life && !owed || m.State == persistence.Finished || m.State == persistence.Left {
		return
	}
	if d.wrong == nil {
		d.wrong = fmt.Errorf("node %d/%d claims %q from node %d/%d, whose life is not over", by.node, by.life, key[1:], old.Owner, old.Life)
	}
}
