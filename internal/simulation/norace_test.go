//go:build !race

package simulation

const defaultSchedules = 2000
