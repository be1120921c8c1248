package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/herald-mqtt/herald"
	"github.com/herald-mqtt/herald/broker"
	"github.com/herald-mqtt/herald/broker/admin"
	"github.com/herald-mqtt/herald/broker/config"
)

// node is what serve needs of a broker.
type node interface {
	// Run serves until ctx ends and everything is stopped.
	Run(ctx context.Context) error
	// Ready returns the reasons why the node cannot serve; none: it can.
	Ready() []string
	Registry() *prometheus.Registry
}

// opener makes a node that has recovered its store and waits for Run.
type opener func(config.Config, *zap.Logger) (node, error)

func newServeCommand(open opener) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a node",
		Long: `Serve runs a node; without a file, on the embedded defaults. It prints where it
listens once it does. SIGTERM and SIGINT stop it gracefully within
node.stop_timeout, a second one at once. SIGHUP reads the configuration again:
log.level changes on the spot, certificates of listeners are read again (from the files
that were named at the start), and the log names what needs a restart.`,
		Args: exactly(0, ""),
	}
	from := sources(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := loadConfig(from())
		if err != nil {
			return err
		}
		log, level, err := newLog(c.Log, zapcore.AddSync(cmd.ErrOrStderr()))
		if err != nil {
			return refused(err)
		}
		s := &server{config: c, from: from, open: open, log: log, level: level, out: cmd.OutOrStdout()}
		return s.run(cmd.Context())
	}
	return cmd
}

// server is one run of serve.
type server struct {
	config config.Config // as at the start
	from   func() config.Sources
	open   opener
	log    *zap.Logger
	level  zap.AtomicLevel
	out    io.Writer

	node     atomic.Pointer[node] // nil until it is opened
	drained  atomic.Int64         // the rate at which it was told to; 0: it was not
	stopping atomic.Bool
}

// run returns when the node has stopped. The admin endpoint is there before
// the store is open and until everything else is gone, so that a long recovery
// or a long stop can be watched.
func (s *server) run(parent context.Context) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	var workers sync.WaitGroup
	defer workers.Wait()
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(parent))
	defer stopAdmin()
	failed := make(chan error, 1)
	if s.config.Admin.Address != "" {
		web, err := admin.Listen(s.config.Admin, admin.Options{
			Ready: s.ready, Status: s.status, Drain: s.drain, Kick: s.kick,
			Ban: s.ban, Unban: s.unban, Bans: s.bans,
			Metrics: prometheus.GathererFunc(s.gather), Version: version, Log: s.log,
		})
		if err != nil {
			return refused(err)
		}
		s.say("admin on http://%s", web.Addr())
		workers.Go(func() {
			if err := web.Run(adminCtx); err != nil {
				failed <- err
			}
		})
	}

	done := make(chan error, 1)
	opened := make(chan struct{})
	workers.Go(func() { done <- s.serve(ctx, opened) })
	workers.Go(func() { s.announce(ctx, opened) })

	var deadline <-chan time.Time
	for {
		select {
		case err := <-done:
			if s.stopping.Load() && err == nil {
				s.log.Info("stopped")
			}
			cancel()
			return err
		case err := <-failed:
			s.log.Error("admin endpoint failed", zap.Error(err))
			s.stopping.Store(true)
			cancel()
			return errors.Join(err, <-done)
		case got := <-signals:
			if got == syscall.SIGHUP {
				s.reload()
				continue
			}
			if s.stopping.Swap(true) {
				s.exit("a second signal")
			}
			s.log.Info("stopping", zap.Stringer("signal", got), zap.Duration("within", s.config.Node.StopTimeout))
			deadline = time.After(s.config.Node.StopTimeout)
			cancel()
		case <-deadline:
			s.exit(fmt.Sprintf("not stopped within node.stop_timeout (%s)", s.config.Node.StopTimeout))
		}
	}
}

// serve opens the node and runs it. What goes wrong before it was ready is the
// environment's fault.
func (s *server) serve(ctx context.Context, opened chan<- struct{}) error {
	n, err := s.open(s.config, s.log)
	if err != nil {
		return refused(err)
	}
	s.node.Store(&n)
	close(opened)
	err = n.Run(ctx)
	if err != nil && !anew(err) && atStart(err) {
		return refused(err)
	}
	// From the second life on whatever is wrong may get right again.
	for again := anew(err); again && err != nil && ctx.Err() == nil; {
		if anew(err) {
			s.log.Warn("this node begins a new life", zap.Error(err))
		} else {
			s.log.Error("this node's new life has ended; it tries again", zap.Error(err))
			pause(ctx, time.Second)
		}
		if n = s.again(ctx); n == nil {
			return nil // there is nothing to be stopped
		}
		if rate := s.drained.Load(); rate > 0 { // until the process ends
			if err := s.drainNode(n, int(rate)); err != nil {
				s.log.Error("draining again", zap.Error(err))
			}
		}
		s.node.Store(&n)
		err = n.Run(ctx)
	}
	if anew(err) {
		return nil // it was to stop anyway
	}
	return err
}

// anew tells whether a node's life is over, and it may begin another.
func anew(err error) bool { return errors.Is(err, broker.ErrLost) || errors.Is(err, broker.ErrCutOff) }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// again opens the node anew, however long what it needs is away; nil: ctx has ended.
func (s *server) again(ctx context.Context) node {
	for ctx.Err() == nil {
		n, err := s.open(s.config, s.log)
		if err == nil {
			return n
		}
		s.log.Warn("cannot begin a new life yet", zap.Error(err))
		pause(ctx, time.Second)
	}
	return nil
}

// exit ends the process without waiting for anything.
func (s *server) exit(why string) {
	fmt.Fprintln(os.Stderr, "herald: "+why)
	os.Exit(exitFailed)
}

func (s *server) say(format string, args ...any) {
	fmt.Fprintf(s.out, format+"\n", args...)
}

// announce prints where the node listens, once it does.
func (s *server) announce(ctx context.Context, opened <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-opened:
	}
	n := *s.node.Load()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for len(n.Ready()) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
	for _, l := range listening(s.config, n) {
		s.say("listening on %s", l)
	}
	s.log.Info("ready", zap.String("node", s.config.Node.Name), zap.String("version", version))
}

func (s *server) ready() []string {
	n := s.node.Load()
	if n == nil {
		return []string{"starting"}
	}
	reasons := (*n).Ready()
	if s.stopping.Load() {
		reasons = append([]string{"stopping"}, reasons...)
	}
	return reasons
}

// operated is what operators may do with a node.
type operated interface {
	Status() broker.Status
	Drain(rate int) error
	Kick(client string) (here bool)
	Ban(context.Context, admin.Ban) (admin.Ban, error)
	Unban(context.Context, admin.Ban) error
	Bans(after string, limit int) (admin.BanPage, error)
}

// status is what the node says of itself; nil before it is opened.
func (s *server) status() any {
	n := s.node.Load()
	if n == nil {
		return nil
	}
	o, ok := (*n).(operated)
	if !ok {
		return nil
	}
	st := o.Status()
	st.Reasons = s.ready()
	st.Ready = len(st.Reasons) == 0
	if st.Reasons == nil {
		st.Reasons = []string{}
	}
	return st
}

func (s *server) drain(rate int) error {
	n := s.node.Load()
	if n == nil {
		return fmt.Errorf("%w: the node is starting", herald.ErrUnavailable)
	}
	err := s.drainNode(*n, rate)
	if err == nil {
		s.drained.Store(int64(cmp.Or(rate, broker.DrainRate)))
	}
	return err
}

// operated is the node, for what operators do.
func (s *server) operated() (operated, error) {
	n := s.node.Load()
	if n == nil {
		return nil, fmt.Errorf("%w: the node is starting", herald.ErrUnavailable)
	}
	o, ok := (*n).(operated)
	if !ok {
		return nil, fmt.Errorf("%w: this node cannot", herald.ErrUnavailable)
	}
	return o, nil
}

func (s *server) kick(client string) (here bool, err error) {
	o, err := s.operated()
	if err != nil {
		return false, err
	}
	return o.Kick(client), nil
}

func (s *server) ban(ctx context.Context, b admin.Ban) (admin.Ban, error) {
	o, err := s.operated()
	if err != nil {
		return b, err
	}
	return o.Ban(ctx, b)
}

func (s *server) unban(ctx context.Context, b admin.Ban) error {
	o, err := s.operated()
	if err != nil {
		return err
	}
	return o.Unban(ctx, b)
}

func (s *server) bans(after string, limit int) (admin.BanPage, error) {
	o, err := s.operated()
	if err != nil {
		return admin.BanPage{}, err
	}
	return o.Bans(after, limit)
}

func (*server) drainNode(n node, rate int) error {
	o, ok := n.(operated)
	if !ok {
		return fmt.Errorf("%w: this node cannot drain", herald.ErrUnavailable)
	}
	return o.Drain(rate)
}

func (s *server) gather() ([]*dto.MetricFamily, error) {
	if n := s.node.Load(); n != nil {
		return (*n).Registry().Gather()
	}
	return nil, nil
}

// reload puts in force what can change while the node runs, and says what
// cannot. A configuration that is refused changes nothing.
//
// It runs only on run's goroutine.
func (s *server) reload() {
	c, err := loadConfig(s.from())
	if err != nil {
		s.log.Error("configuration refused, nothing changed", zap.Error(err))
		return
	}
	var restart []string
	for _, ch := range config.Changed(s.config, c) {
		if !ch.Reload {
			restart = append(restart, ch.Key)
		}
	}
	if err := s.level.UnmarshalText([]byte(c.Log.Level)); err != nil {
		s.log.Error("log.level", zap.Error(err))
		return
	}
	s.log.Info("configuration read again", zap.String("log.level", c.Log.Level))
	s.reloadCertificates()
	if len(restart) > 0 {
		s.log.Warn("changed, but in force only after a restart", zap.Strings("keys", restart))
	}
}

// reloadCertificates has the node read its certificates again.
func (s *server) reloadCertificates() {
	n := s.node.Load()
	if n == nil {
		return // it is about to read them
	}
	r, ok := (*n).(interface{ ReloadCertificates() (int, error) })
	if !ok {
		return
	}
	read, err := r.ReloadCertificates()
	if err != nil {
		s.log.Error("certificates refused, the old ones stay", zap.Error(err))
	}
	if read > 0 {
		s.log.Info("certificates read again", zap.Int("listeners", read))
	}
}

// listening describes the listeners: those of the node if it can tell (a port 0
// has become a real one by then), else the configured ones.
func listening(c config.Config, n node) []string {
	if l, ok := n.(interface{ Listening() []string }); ok {
		return l.Listening()
	}
	var out []string
	for _, l := range c.Listeners {
		switch l.Protocol {
		case config.Unix:
			out = append(out, l.Protocol+" "+l.Path)
		case config.WS, config.WSS:
			out = append(out, fmt.Sprintf("%s %s%s", l.Protocol, l.Address, l.Path))
		default:
			out = append(out, l.Protocol+" "+l.Address)
		}
	}
	return out
}

// atStart tells whether an error is the environment's fault.
func atStart(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) ||
		errors.Is(err, syscall.EACCES) || errors.Is(err, herald.ErrInUse)
}
