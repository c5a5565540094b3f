"""Many runs from one file, on one machine or a cluster: what there is to run, and Ray Tune that runs it."""
