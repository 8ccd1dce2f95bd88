"""The engine side: programs that run in a worker of vLLM.

Each module is about one thing:

    engine.py           wraps the model runner; starts programs, and finds their tokens
    engine_tap.py       the tap on a module: offers each request its part of the values
    operations.py       the same for operations inside a module's forward
    request_run.py      the programs of one request, from its first forward to its outcome
    request_driver.py   their driver and taps
    slots.py            one request in one forward; `token_spans.py`: its tokens
    portions.py         a request's view of a value; `forms.py`: which tensor of it is meant
    ranks.py            tensor parallelism: the commands of rank 0; `follower.py`: the other ranks
    shards.py           how a tensor is split over ranks
    time_limit.py       ends a block that runs on without asking for a value
    scheduling.py       keeps a prompt in one piece where a program needs that
    worker.py           the methods that the client calls
    context.py          the engine as its parts see it
"""
