"""Runs a Python action for the Embermesh proxy, which talks to it over the socket on fd 3.

One run at a time and a plain function: it is called on the main thread. Otherwise an event loop on the
main thread runs coroutines, and hands plain functions to threads. A context variable says whose call some code is part
of: threads and executors inherit it, lines are attributed by it, and os.environ shows each call its own __OW_ values.
"""

import concurrent.futures.thread
import contextvars
import functools
import importlib
import io
import json
import os
import select
import socket
import sys
import threading
import traceback

# asyncio and inspect are imported where they are needed: they would add half again to a cold start.

CHANNEL_FD = 3
CHUNK_BYTES = 65536
MAX_LINE_BYTES = 65536
RESULT_TOO_LARGE = 507
MAX_THREADS = 256
# Threads of ours; a default stack of 8 MB each would not fit a small container.
STACK_BYTES = 512 * 1024
MAX_LOOSE_PARTS = 1000
CO_COROUTINE = 0x80
END_MARK = b"XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"

current = contextvars.ContextVar("embermesh_call", default=None)
# Reentrant: a finaliser that prints may run while a line is written.
writing = threading.RLock()
sending = threading.Lock()
forked = False
# Parts of lines of nobody, by (fd, thread).
loose = {}


class Call:
    """One activation: whose lines they are, and its own part of the environment."""

    def __init__(self, request, framed):
        activation = str(request.get("activation_id") or "")
        proper = len(activation) == 32 and all(c in "0123456789abcdef" for c in activation)
        self.prefix = b"\x1e" + activation.encode() + b"\x1f" if framed and proper else b""
        self.env = {"__OW_" + k.upper(): str(v) for k, v in request.items() if k != "value" and v is not None}
        self.lines = 0
        self.closed = False
        self.parts = {}

    def close(self):
        """Writes unfinished lines and, unless an agent is told of none, the end marks; returns the number of lines."""
        with writing:
            for (fd, _), part in self.parts.items():
                self.lines += 1
                emit(fd, self.prefix, part)
            self.parts.clear()
            self.closed = True
            if self.lines or not self.prefix:
                for fd in (1, 2):
                    emit(fd, self.prefix, END_MARK)
            return self.lines


def emit(fd, prefix, line):
    data = prefix + line[:MAX_LINE_BYTES] + b"\n"
    while data:
        try:
            data = data[os.write(fd, data):]
        except BlockingIOError:
            select.select([], [fd], [], 1)
        except OSError:
            return


def put(fd, data):
    """Takes what some code printed; whole lines go out, the rest waits for its newline."""
    with writing:
        call = None if forked else current.get()
        if call is not None and call.closed:
            call = None
        parts = loose if call is None else call.parts
        key = (fd, threading.get_ident())
        *lines, rest = (parts.pop(key, b"") + data).split(b"\n")
        for line in lines:
            if call is not None:
                call.lines += 1
            emit(fd, call.prefix if call is not None else b"", line)
        if rest:
            parts[key] = rest[:MAX_LINE_BYTES]
            if call is None and len(loose) > MAX_LOOSE_PARTS:
                spill()


def spill():
    for (fd, _), part in loose.items():
        emit(fd, b"", part)
    loose.clear()


class Bytes(io.RawIOBase):
    """What stands behind Output.buffer."""

    def __init__(self, fd):
        self.fd = fd

    def writable(self):
        return True

    def fileno(self):
        return self.fd

    def write(self, data):
        data = bytes(data)
        put(self.fd, data)
        return len(data)


class Output(io.TextIOBase):
    """Stands in for sys.stdout and sys.stderr."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, fd, name):
        self.name = name
        self.mode = "w"
        self.buffer = Bytes(fd)

    def writable(self):
        return True

    def fileno(self):
        return self.buffer.fd

    def reconfigure(self, **_):
        pass

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not " + type(text).__name__)
        put(self.buffer.fd, text.encode(self.encoding, self.errors))
        return len(text)

    def flush(self):
        # A part of a line is kept: it must not mix with lines of others. A forked child has nobody to mix with.
        if forked:
            with writing:
                spill()

    def close(self):
        self.flush()


class CallEnviron(type(os.environ)):
    """os.environ with each call's own values before the process's."""

    def __getitem__(self, key):
        call = current.get()
        if call is not None and key in call.env:
            return call.env[key]
        return super().__getitem__(key)


def inherit_context():
    """Makes threads and executors part of the call that started them."""
    start = threading.Thread.start
    submit = concurrent.futures.ThreadPoolExecutor.submit

    @functools.wraps(start)
    def start_in_context(self):
        if current.get() is not None:
            self.run = functools.partial(contextvars.copy_context().run, self.run)
        return start(self)

    @functools.wraps(submit)
    def submit_in_context(self, fn, /, *args, **kwargs):
        return submit(self, contextvars.copy_context().run, fn, *args, **kwargs)

    threading.Thread.start = start_in_context
    concurrent.futures.ThreadPoolExecutor.submit = submit_in_context


def after_fork_in_child():
    # What a child process prints is nobody's, and the channel is not its to use.
    global forked, writing
    forked = True
    writing = threading.RLock()
    loose.clear()
    try:
        os.close(CHANNEL_FD)
    except OSError:
        pass


def is_coroutine_function(function):
    code = getattr(function, "__code__", None)
    if code is not None:
        return bool(code.co_flags & CO_COROUTINE)
    import inspect

    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))


def is_awaitable(value):
    return hasattr(type(value), "__await__")


def params(request):
    value = request.get("value")
    return {} if value is None else value


def describe(error):
    text = str(error)
    name = type(error).__name__
    return name + ": " + text if text else name


class Launcher:
    def __init__(self, channel):
        self.channel = channel
        self.main = None
        self.framed = False
        self.concurrency = 1
        self.max_result_bytes = 0
        self.coroutine = False
        self.asyncio = None
        self.loop = None
        self.pool = None
        self.tasks = set()

    def send(self, number, status, lines, body):
        message = '{"id":%d,"status":%d,"lines":%d,"body":%s}\n' % (number, status, lines, body)
        with sending:
            try:
                self.channel.sendall(message.encode())
            except OSError:
                os._exit(0)

    def init(self, request):
        """Loads the code; returns whether that worked."""
        self.framed = request["framed"]
        self.concurrency = request["concurrency"]
        self.max_result_bytes = request["max_result_bytes"]
        os.environ.update(request["env"])
        os.environ.__class__ = CallEnviron
        sys.dont_write_bytecode = True
        sys.argv = [request["file"]]
        name = request["main"]
        try:
            module = importlib.import_module("main__")
        except BaseException as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_frame.f_code.co_filename != request["file"]:
                trace = trace.tb_next
            lines = traceback.format_exception(type(error), error, trace)
            self.send(0, 502, 0, json.dumps({"error": "the code cannot be loaded: " + "".join(lines)[-2000:].strip()}))
            return False
        main = module
        for part in name.split("."):
            main = getattr(main, part, None)
        if not callable(main):
            known = ", ".join(k for k, v in vars(module).items() if type(v) is type(describe)) or "none"
            error = "there is no function %s in the code: it defines %s" % (name, known)
            self.send(0, 502, 0, json.dumps({"error": error}))
            return False
        self.main = main
        self.send(0, 200, 0, '{"ok":true}')
        return True

    def serve(self, rest):
        self.coroutine = is_coroutine_function(self.main)
        if self.concurrency == 1 and not self.coroutine:
            return self.serve_one_at_a_time(rest)
        self.make_loop()
        self.pool = concurrent.futures.ThreadPoolExecutor(min(self.concurrency, MAX_THREADS))
        self.rest = rest
        self.start_waiting()
        self.loop.add_reader(CHANNEL_FD, self.on_readable)
        self.loop.run_forever()

    def read(self, line):
        """The message, or None if Python can't read it: too deep, say."""
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            number = int(line[len(b'{"id":'):line.index(b",")])
            # The proxy ends the log: whose it is stands in what can't be read.
            body = json.dumps({"error": "the parameters cannot be read: " + describe(error)})
            self.send(number, 400, 0, body)
            return None

    def make_loop(self):
        import asyncio

        self.asyncio = asyncio
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)

    def serve_one_at_a_time(self, rest):
        while True:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                message = self.read(line)
                if message is not None:
                    contextvars.copy_context().run(self.run, message["id"], message["run"])
            if not lines:
                data = self.channel.recv(CHUNK_BYTES)
                if not data:
                    os._exit(0)
                rest += data
                while not data.endswith(b"\n"):
                    data = self.channel.recv(CHUNK_BYTES)
                    if not data:
                        os._exit(0)
                    rest += data

    def on_readable(self):
        try:
            data = self.channel.recv(CHUNK_BYTES, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            os._exit(0)
        if not data:
            os._exit(0)
        self.parts.append(data)
        if b"\n" in data:
            self.rest = b"".join(self.parts)
            self.start_waiting()

    def start_waiting(self):
        *lines, rest = self.rest.split(b"\n")
        self.rest = b""
        self.parts = [rest] if rest else []
        for line in lines:
            message = self.read(line)
            if message is None:
                continue
            if self.coroutine:
                task = self.loop.create_task(self.run_coroutine(message["id"], message["run"]))
                # The loop itself keeps tasks only weakly.
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            else:
                self.submit(message["id"], message["run"])

    def submit(self, number, request):
        # Only the pool's own threads get the small stack.
        before = threading.stack_size(STACK_BYTES)
        try:
            self.pool.submit(self.run, number, request)
        finally:
            threading.stack_size(before)

    def run(self, number, request):
        call = self.enter(request)
        try:
            result = self.main(params(request))
            if is_awaitable(result):
                result = self.wait_for(result)
        except BaseException as error:
            return self.fail(number, call, error)
        self.succeed(number, call, result)

    def wait_for(self, awaitable):
        async def finish():
            return await awaitable

        if self.loop is None:
            self.make_loop()
        if self.loop.is_running():
            return self.asyncio.run_coroutine_threadsafe(finish(), self.loop).result()
        return self.loop.run_until_complete(finish())

    async def run_coroutine(self, number, request):
        call = self.enter(request)
        try:
            result = self.main(params(request))
            if is_awaitable(result):
                result = await result
        except BaseException as error:
            return self.fail(number, call, error)
        self.succeed(number, call, result)

    def enter(self, request):
        call = Call(request, self.framed)
        current.set(call)
        if self.concurrency == 1:
            os.environ.update(call.env)
        return call

    def succeed(self, number, call, result):
        if not isinstance(result, (dict, list, tuple)):
            kind = type(result).__name__
            return self.refuse(number, call, "The action did not return a dictionary or array, but " + kind)
        try:
            body = json.dumps(result, allow_nan=False, separators=(",", ":"))
        except Exception as error:
            return self.refuse(number, call, "the action's result cannot be written as JSON: " + describe(error))
        if len(body) > self.max_result_bytes:
            error = "the action's result has %d bytes, more than the %d that are passed on: return less"
            return self.refuse(number, call, error % (len(body), self.max_result_bytes), RESULT_TOO_LARGE)
        self.send(number, 200, call.close(), body)

    def fail(self, number, call, error):
        # Without the launcher's own frame.
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        sys.stderr.write("".join(traceback.format_exception(type(error), error, trace)))
        self.send(number, 502, call.close(), json.dumps({"error": describe(error)[:10000]}))

    def refuse(self, number, call, error, status=502):
        sys.stderr.write(error + "\n")
        self.send(number, status, call.close(), json.dumps({"error": error}))


def main():
    channel = socket.socket(fileno=CHANNEL_FD)
    channel.set_inheritable(False)
    sys.stdout = sys.__stdout__ = Output(1, "<stdout>")
    sys.stderr = sys.__stderr__ = Output(2, "<stderr>")
    inherit_context()
    os.register_at_fork(after_in_child=after_fork_in_child)
    data = b""
    while b"\n" not in data:
        chunk = channel.recv(CHUNK_BYTES)
        if not chunk:
            os._exit(0)
        data += chunk
    line, rest = data.split(b"\n", 1)
    launcher = Launcher(channel)
    if launcher.init(json.loads(line)["init"]):
        launcher.serve(rest)


main()
