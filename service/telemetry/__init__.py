"""What is measured of a run, for people and for Prometheus.

metrics.py      every Prometheus metric of the worker: name, unit, help
heartbeat.py    liveness by progress
watchdog.py     where the threads of a worker are that has stalled, and its end
console.py      progress bar and lines on the terminal; throughput
loss_curve.py   the training loss of a whole run in at most 1,000 points
preview.py      a few of the pictures that are trained on
gpu.py          utilisation and temperature of the GPU, from NVML
"""
