//go:build race

package membership_test

// schedules is how many random schedules TestSchedules runs: each costs five times
// as much with the race detector.
const schedules = 40
