"""The checks of `service.doctor`. Most have a `find_...` or a probe that looks; each has a pure `judge_...`.

checks.py       all checks in turn, and the command that follows from them
finding.py      Finding: status, what was found, what follows, the remedy
probes.py       what may crash or hang, tried in a process of its own
environment.py  Python, environment variables
processor.py    processor, cores
memory.py       memory, /dev/shm
cgroup.py       what cgroups allow: cores and memory
network.py      open files, ports
software.py     torch, the compiler, DALI
gpu.py          driver, CUDA, decoding on the GPU, NCCL, Docker
disk.py         where the run is to be written
data.py         the data set
"""
