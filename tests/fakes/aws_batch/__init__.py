"""AWS Batch on this machine: jobs are processes, and what happens to them comes as events.

============  =========================================================================================================
``engine``    what AWS Batch does: queues, slots, attempts, retries, kills; knows nothing of HTTP or of ministack
``machine``   the processes of a job: who belongs to it, how much memory they have, how they end
``events``    the way of an event, with its delays, duplicates and losses
``api``       the operations: what is refused, what is answered
``resources`` the four types of CloudFormation
``serve``     a ministack with all this in it, a program that runs in ministack's own environment
============  =========================================================================================================

How to start and steer it: ``tests/aws.py``.  What it leaves out is said in ``engine``.
"""
