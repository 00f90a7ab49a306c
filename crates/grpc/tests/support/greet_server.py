"""A greeter of grpc-core: `greet_server.py`. Needs grpcio (Debian: python3-grpcio).

Prints its port, and then a line for each call that its client has cancelled. It ends with its input.
"""

import os
import sys
import threading
import time
from concurrent import futures

import grpc

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from greet_client import decode, encode


def say(line):
    print(line, flush=True)


def hello(name, context):
    told = dict(context.invocation_metadata())
    if "x-echo" in told:
        context.send_initial_metadata((("x-head", told["x-echo"]),))
        context.set_trailing_metadata((("x-tail", told["x-echo"]),))
    if name == "denied":
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
    if name == "wait":
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(20)
        say("cancelled" if over.is_set() else "forgotten")
    if name.startswith("large "):
        return "x" * int(name[6:])
    return "Hello " + name


def hellos(name, context):
    if name == "endless":
        context.add_callback(lambda: say("stream ended"))
        while context.is_active():
            yield "x" * 1000
            time.sleep(0.001)
        return
    for n in range(5):
        yield f"Hello {name} {n}"


class Greeter(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/greet.GreeterService/SayHello":
            return grpc.unary_unary_rpc_method_handler(hello, decode, encode)
        if details.method == "/greet.GreeterService/SayHelloStream":
            return grpc.unary_stream_rpc_method_handler(hellos, decode, encode)
        return None


server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=32),
    compression=grpc.Compression.Gzip if "gzip" in sys.argv else None,
    options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_connection_age_ms", 1000)]
    if "age" in sys.argv
    else [("grpc.max_receive_message_length", 64 << 20)],
)
server.add_generic_rpc_handlers((Greeter(),))
say(server.add_insecure_port("127.0.0.1:0"))
server.start()
sys.stdin.read()
server.stop(0)
