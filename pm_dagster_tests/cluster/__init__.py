"""Tests of the entry that runs on a cluster, as a process of its own, without Spark."""
