package broker

// Status is what a node says of itself to operators.
type Status struct {
	Node    string   `json:"node"`
	Number  *uint16  `json:"number,omitempty"` // in a cluster
	Life    uint64   `json:"life,omitempty"`
	Version string   `json:"version"`
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"` // why it is not
	Clients int      `json:"clients"`
	Peers   []Peer   `json:"peers"` // the live others, as last read
	Drain   Drain    `json:"drain"`
}

// Peer is a live other node, as it says.
type Peer struct {
	Node    string `json:"node"`
	Number  uint16 `json:"number"`
	Life    uint64 `json:"life"`
	Address string `json:"address,omitempty"` // for clients
	Redis   bool   `json:"redis"`             // it reaches it
	Leaving bool   `json:"leaving"`           // it takes no clients
}

// Drain is how far it is.
type Drain struct {
	// State is serving, draining (clients are being sent away) or drained (nobody is
	// left, and nobody is taken).
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
	Rate  int    `json:"rate,omitempty"` // connections a second, as asked for
	Sent  int64  `json:"sent"`           // clients that were told to go
	Left  int    `json:"left"`           // clients that are still here; 0 while serving
}

// Status returns what the node is doing. Any goroutine may call it.
func (b *Broker) Status() Status {
	reasons := b.Ready()
	s := Status{
		Node: b.cfg.Node.Name, Version: Version, Ready: len(reasons) == 0, Reasons: append([]string{}, reasons...),
		Clients: b.engine.Gauges().Clients, Peers: []Peer{},
		Drain: Drain{State: "serving", Why: b.drain.why(), Rate: int(b.drain.rate.Load()), Sent: b.drain.sent.Load()},
	}
	if s.Drain.Why != "" {
		s.Drain.Left = s.Clients
		if s.Drain.State = "draining"; s.Clients == 0 {
			s.Drain.State = "drained"
		}
	}
	if b.cluster == nil {
		return s
	}
	self := b.cluster.Self()
	s.Number, s.Life = &self.Node, self.Incarnation
	for _, p := range b.cluster.member.Peers() {
		s.Peers = append(s.Peers, Peer{
			Node: p.Name, Number: p.Node, Life: p.Life, Address: p.Status.Address,
			Redis: p.Status.Bridge, Leaving: p.Status.Leaving,
		})
	}
	return s
}
