"""Stages that sleep instead of computing, so that many fit on few cores."""
