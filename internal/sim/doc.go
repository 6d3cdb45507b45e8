// Package sim is a seeded simulator of a whole swarm: the real state, deciders, planner and task
// machine over a log, a network, clocks and containers that it makes up.
//
// One event happens at a time, in the order of (time, sender, sequence), and everything that is not
// decided by the code under test is decided by one random number generator, so a seed is a
// whole history: the same seed gives the same trace. Faults are the nemesis's part, writes
// the users', verdicts the judge's; the three know nothing of each other. The judge looks
// at every entry of the log as it is agreed on, and at the whole swarm when all faults are
// healed.
//
// What is simulated must be as the real thing in what it promises, not in how it works: a
// member applies the log in order and sometimes late; a session delivers in order or breaks; a
// batch may be lost, late, there twice, or there without anybody being told. Package sim
// must not be imported by anything but tests.
package sim
