package clustertest

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// Metric asks the broker for a metric and returns the sum of its series whose
// labels contain with; none is 0. It may be called at any time from several
// goroutines.
func (n *Node) Metric(ctx context.Context, name, with string) (sum float64, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	req.Close = true // it would outlive the process it leads to
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || strings.HasPrefix(series, "#") {
			continue
		}
		if got, labels, _ := strings.Cut(series, "{"); got != name || !strings.Contains(labels, with) {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return 0, fmt.Errorf("clustertest: %s: %w", lines.Text(), err)
		}
		sum += v
	}
	return sum, lines.Err()
}

// Admin is the address of the broker's admin endpoint.
func (n *Node) Admin() string { return n.admin }

// Output is what the broker has logged last, 64 KiB at most.
func (n *Node) Output() string {
	b, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-64<<10):])
}
