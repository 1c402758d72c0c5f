"""`moxserve launch`: the processes of a training job, started and kept running, here or on other machines.

`plan`: what the processes are: their addresses, flags and commands. `supervisor`: runs them, starts those again that
died, ends all in order. `member`: the small process around each of them that ends it when the supervisor is gone.
`output`: their lines, each with the name of its process. Nothing here imports TensorFlow.
"""
