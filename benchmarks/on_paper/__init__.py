"""What the compiled step would do on a GPU, worked out without one.

step.py: the training step and its graph; made_up_gpu.py: the code that Inductor generates of it for an H100 that is not
there; costs.py: what that code moves and computes, and its collectives.
"""
