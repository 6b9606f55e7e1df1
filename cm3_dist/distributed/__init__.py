"""Ranks: process groups, seeds, heartbeats, stop signals, and how a command ends."""
