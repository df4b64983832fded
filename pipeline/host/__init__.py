"""What this host gives a process.

address.py      HOST:PORT, as URLs have it
cpus.py         how many cores this process can keep busy: affinity and cgroups
machine.py      which type of machine this is: processor, cores, memory
memory.py       keep freed memory in the process
"""
