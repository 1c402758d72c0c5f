"""Several server processes behind one gRPC port and one REST port: `moxserve serve --num_processes=N`.

    supervisor   the process that was started: reserves the ports, starts the others, restarts one that dies, makes each
                 change of the configuration in all of them or in none, adds up what they count
    member       one of the others: a whole server, which hands what concerns all of them to the supervisor
    channel      how the two talk: requests and answers over a pair of sockets
    signals      how any server process is told to stop

The system spreads connections over the members (SO_REUSEPORT), so the supervisor is on nobody's way. It never imports
TensorFlow. A member that loses its supervisor drains and ends.
"""
