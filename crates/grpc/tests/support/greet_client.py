"""A client of grpc-core for the greeter of the tests: `greet_client.py ADDRESS`. Needs grpcio (Debian: python3-grpcio).

Messages are written by hand, so that nothing else is needed. Prints a line for each thing that went well; the first
that did not ends it.
"""

import sys
import time

import grpc

HELLO = "/greet.GreeterService/SayHello"
HELLOS = "/greet.GreeterService/SayHelloStream"


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def encode(name):
    text = name.encode()
    return b"\x0a" + varint(len(text)) + text if text else b""


def decode(message):
    if not message:
        return ""
    at, length, shift = 1, 0, 0
    while True:
        byte = message[at]
        length, shift, at = length | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            break
    assert message[0] == 0x0A and len(message) == at + length, message[:20]
    return message[at:].decode()


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def main(address):
    channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 64 << 20)])
    hello = channel.unary_unary(HELLO, request_serializer=encode, response_deserializer=decode)
    hellos = channel.unary_stream(HELLOS, request_serializer=encode, response_deserializer=decode)

    assert hello("Ada", timeout=20) == "Hello Ada!"
    print("unary")
    assert [str(reply) for reply in hellos("Ada", timeout=20)] == [f"Ada {n}" for n in range(5)]
    print("stream")

    calls = [hello.future(f"caller {n}", timeout=20) for n in range(200)]
    assert [call.result() for call in calls] == [f"Hello caller {n}!" for n in range(200)]
    print("200 at once")

    began = time.monotonic()
    assert code_of(lambda: hello("wait", timeout=0.2))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    assert code_of(lambda: list(hellos("wait", timeout=0.2)))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 10
    print("deadlines")

    waiting = hello.future("wait", timeout=20)
    time.sleep(0.1)
    assert waiting.cancel() and waiting.cancelled()
    stream = hellos("wait", timeout=20)
    assert next(stream) == "one"
    stream.cancel()
    assert code_of(lambda: next(stream))[0] == grpc.StatusCode.CANCELLED
    print("cancellation")

    reply, call = hello.with_call("Ada", timeout=20, metadata=[("x-echo", "it was said")])
    assert ("x-echo", "it was said") in [tuple(pair) for pair in call.initial_metadata()], call.initial_metadata()
    print("metadata")

    assert code_of(lambda: hello("fail", timeout=20)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "as it was told: ünd so",
    )
    stream, got = hellos("fail", timeout=20), []
    assert code_of(lambda: got.extend(stream))[0] == grpc.StatusCode.ABORTED
    unknown = channel.unary_unary("/greet.GreeterService/Shout")
    assert code_of(lambda: unknown(b"", timeout=20))[0] == grpc.StatusCode.UNIMPLEMENTED
    print("statuses")

    text = "x" * 3_000_000
    assert hello(text, timeout=20) == f"Hello {text}!"
    assert len(hello("big:8000000", timeout=20)) == 8_000_000
    assert code_of(lambda: hello("x" * 5_000_000, timeout=20))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    print("large messages")

    zipped = grpc.insecure_channel(address, compression=grpc.Compression.Gzip)
    hello = zipped.unary_unary(HELLO, request_serializer=encode, response_deserializer=decode)
    text = "compress " * 50_000
    assert hello(text, timeout=20) == f"Hello {text}!"
    print("gzip")

    health = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert health(b"", timeout=20) == b"\x08\x01"
    assert health(b"\x0a\x14greet.GreeterService", timeout=20) == b"\x08\x01"
    print("health")


if __name__ == "__main__":
    main(sys.argv[1])
