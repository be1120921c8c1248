package redistest

import "testing"

func TestAServerForgetsAllButWhatWasSaved(t *testing.T) {
	s := Start(t)
	s.Do("SET a 1")
	s.Save()
	s.Do("SET b 2")
	s.Restart()
	if a, b := s.Do("EXISTS a"), s.Do("EXISTS b"); a != ":1" || b != ":0" {
		t.Errorf("after a restart: a %s, b %s", a, b)
	}
	s.RestartEmpty()
	if a := s.Do("EXISTS a"); a != ":0" {
		t.Errorf("after an empty restart: a %s", a)
	}
}
