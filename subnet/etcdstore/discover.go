package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// lookupPause is the shortest time from one lookup to the next. Answers
	// live longer than that in any cache.
	lookupPause = 10 * time.Second
	// While nothing was found yet, lookups follow each other with a pause
	// that grows from the first of these to the second.
	firstRetry, lastRetry = 100 * time.Millisecond, 2 * time.Second
)

// discovery finds endpoints in DNS, as etcdctl's --discovery-srv does:
//
//	_etcd-client-ssl._tcp.DOMAIN   targets that speak TLS
//	_etcd-client._tcp.DOMAIN       targets that do not, asked for if there are none of the former
//
// A call waits for the first answer. Later lookups run beside the calls, and
// only what they find counts: while DNS is down the former endpoints stay. All
// targets are equal, as to etcd's client; priorities and weights are not used.
//
// DNS is not trusted with more than that. A target's certificate must be valid
// for the target's name, as with etcdctl, and the authority decides. Plain
// endpoints are not even asked for where options name certificates, and never
// replace those that spoke TLS: else whoever forges an answer would be told the
// password.
type discovery struct {
	domain, name string
	resolver     *net.Resolver
	tlsOnly      bool
	pause        time.Duration
	// found is called with what is new.
	found func(endpoints []string)

	// ctx ends the lookups that run beside the calls; running are those.
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	// turn is taken by who looks up.
	turn chan struct{}

	mu sync.Mutex
	// The fields below are guarded by mu.

	// endpoints are empty until something was found; err is why.
	endpoints []string
	err       error
	asked     time.Time
	closed    bool
}

func newDiscovery(o *Options, found func([]string)) *discovery {
	d := &discovery{
		domain:   o.DiscoverySRV,
		name:     o.DiscoverySRVName,
		resolver: o.Resolver,
		tlsOnly:  o.CAFile != "" || o.CertFile != "",
		pause:    lookupPause,
		found:    found,
		turn:     make(chan struct{}, 1),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// known returns the endpoints, or why there are none.
func (d *discovery) known() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.endpoints, d.err
}

// await returns when there are endpoints, or with why there are none when ctx
// ends.
func (d *discovery) await(ctx context.Context) error {
	if endpoints, _ := d.known(); len(endpoints) > 0 {
		return nil
	}
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		_, err := d.known()
		return cmp.Or(err, ctx.Err())
	}
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		if endpoints, _ := d.known(); len(endpoints) > 0 {
			return nil // Somebody else's turn found them.
		}
		err := d.ask(ctx)
		if err == nil {
			return nil
		}
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
	}
}

// refresh looks again, beside the calls, unless that was done a moment ago. It
// is called when a connection fails or ends.
func (d *discovery) refresh() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || len(d.endpoints) == 0 || time.Since(d.asked) < d.pause {
		return
	}
	d.asked = time.Now()
	d.running.Go(func() {
		select {
		case d.turn <- struct{}{}:
			defer func() { <-d.turn }()
			// Failing, it changes nothing, and the connections tell why they
			// fail.
			_ = d.ask(d.ctx)
		case <-d.ctx.Done():
		}
	})
}

// close ends what runs.
func (d *discovery) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel()
	d.running.Wait()
}

// ask looks up and keeps the answer.
func (d *discovery) ask(ctx context.Context) error {
	endpoints, err := d.lookup(ctx)
	d.mu.Lock()
	d.asked = time.Now()
	if err != nil {
		// What DNS said before is worth more than that time ran out.
		if d.err == nil || ctx.Err() == nil {
			d.err = err
		}
		err = d.err
		d.mu.Unlock()
		return err
	}
	same := slices.Equal(d.endpoints, endpoints)
	d.err = nil
	d.mu.Unlock()
	if same {
		return nil
	}
	// Before anybody can know them: a call that finds endpoints goes on to use
	// them.
	d.found(endpoints)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endpoints = endpoints
	return nil
}

// lookup asks DNS once.
func (d *discovery) lookup(ctx context.Context) ([]string, error) {
	former, _ := d.known()
	tlsOnly := d.tlsOnly || len(former) > 0 && secure(former)
	var errs []string
	for _, kind := range []struct{ service, scheme string }{{"etcd-client-ssl", "https://"}, {"etcd-client", "http://"}} {
		if d.name != "" {
			kind.service += "-" + d.name
		}
		endpoints, err := d.targets(ctx, kind.service, kind.scheme)
		if err == nil {
			return endpoints, nil
		}
		errs = append(errs, fmt.Sprintf("SRV _%s._tcp.%s: %s", kind.service, d.domain, sayDNS(err)))
		// That there are none is an answer. Anything else is no reason to do
		// without TLS.
		if missing := new(net.DNSError); tlsOnly || !errors.As(err, &missing) || !missing.IsNotFound {
			break
		}
	}
	return nil, errors.New("no endpoints in DNS: " + strings.Join(errs, "; "))
}

func (d *discovery) targets(ctx context.Context, service, scheme string) ([]string, error) {
	// Records with an impossible name come as an error beside the others.
	_, records, err := d.resolver.LookupSRV(ctx, service, "tcp", d.domain)
	var endpoints []string
	for _, r := range records {
		// RFC 2782: "." says that the service is not available.
		if host := strings.TrimSuffix(r.Target, "."); host != "" {
			endpoints = append(endpoints, scheme+net.JoinHostPort(host, strconv.Itoa(int(r.Port))))
		}
	}
	slices.Sort(endpoints)
	if endpoints = slices.Compact(endpoints); len(endpoints) > 0 {
		return endpoints, nil
	}
	if err == nil {
		err = &net.DNSError{Err: "no target", IsNotFound: true}
	}
	return nil, err
}

// sayDNS says what DNS answered, and who it was; the name is said already.
func sayDNS(err error) string {
	var e *net.DNSError
	if !errors.As(err, &e) {
		return err.Error()
	}
	if e.Server != "" {
		return e.Err + " (asked " + e.Server + ")"
	}
	return e.Err
}

// prompt is a resolver whose questions end when their context is canceled. The standard
// library looks at that between two of them only, and waits for an answer until its
// deadline: 5 s and more, for which a call or a Close would hang.
func prompt(r *net.Resolver) *net.Resolver {
	dial := r.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return &net.Resolver{PreferGo: r.PreferGo, StrictErrors: r.StrictErrors, Dial: func(ctx context.Context, network, server string) (net.Conn, error) {
		conn, err := dial(ctx, network, server)
		if err != nil {
			return nil, err
		}
		// It is canceled when there was an answer, too: then the connection is closed
		// already. A deadline the connection has itself, and says that it passed.
		context.AfterFunc(ctx, func() {
			if errors.Is(ctx.Err(), context.Canceled) {
				_ = conn.Close()
			}
		})
		return conn, nil
	}}
}
