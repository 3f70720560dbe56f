"""Tests of the program that runs on a cluster, without Spark."""
