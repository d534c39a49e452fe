package udp

import "testing"

func TestCountersNameEveryVerdict(t *testing.T) {
	s := Stats{Answers: 1, Unanswered: 2}
	for v := range s.Out.Packets {
		s.Out.Packets[v], s.In.Packets[v] = uint64(100+v), uint64(200+v)
	}
	s.Out.Bytes, s.In.Bytes = 3, 4
	got := s.Counters()
	want := map[string]uint64{
		"answers": 1, "unanswered": 2, "out_bytes": 3, "in_bytes": 4,
		"out_forwarded_packets": 100, "in_forwarded_packets": 200,
		"in_wrong_sender_packets": 200 + uint64(WrongSender),
	}
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s = %d, want %d", name, got[name], n)
		}
	}
	if len(got) != 4+2*int(verdicts) {
		t.Errorf("%d counters, want %d: two verdicts share a name", len(got), 4+2*int(verdicts))
	}
}
