//go:build !race

package membership_test

// schedules is how many random schedules TestSchedules runs.
const schedules = 120
