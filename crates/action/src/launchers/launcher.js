// Runs a Node.js action for the Embermesh proxy, which talks to it over the socket on fd 3.
//
// An AsyncLocalStorage says whose call some code is part of: lines are attributed by it, and process.env shows each
// call its own __OW_ values.

'use strict';

const { AsyncLocalStorage } = require('node:async_hooks');
const fs = require('node:fs');
const Module = require('node:module');
const net = require('node:net');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { Writable } = require('node:stream');
const { inspect } = require('node:util');
const vm = require('node:vm');

const CHANNEL_FD = 3;
const MAX_LINE_BYTES = 65536;
const RESULT_TOO_LARGE = 507;
const MAX_ERROR_LENGTH = 10000;
const FULL_PIPE_PAUSE_MS = 1;
const FULL_PIPE_RETRIES = 5000;
const NEWLINE = 10;
const END_MARK = Buffer.from('XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX');
const NOBODY = { prefix: Buffer.alloc(0), parts: { 1: null, 2: null }, lines: 0 };

const calls = new AsyncLocalStorage();
const channel = new net.Socket({ fd: CHANNEL_FD, readable: true, writable: true });
const pause = new Int32Array(new SharedArrayBuffer(4));
const realEnv = process.env;

let main;
let framed = false;
let concurrency = 1;
let maxResultBytes = 0;

// One activation: whose lines they are, and its own part of the environment.
class Call {
  constructor(request) {
    const id = String(request.activation_id ?? '');
    const proper = framed && /^[0-9a-f]{32}$/.test(id);
    this.prefix = proper ? Buffer.from(`\x1e${id}\x1f`) : NOBODY.prefix;
    this.env = Object.create(null);
    for (const [key, value] of Object.entries(request)) {
      if (key !== 'value' && value != null) this.env[`__OW_${key.toUpperCase()}`] = String(value);
    }
    this.lines = 0;
    this.closed = false;
    this.parts = { 1: null, 2: null };
  }

  // Writes unfinished lines and, unless an agent is told of none, the end marks; returns the number of lines.
  close() {
    for (const fd of [1, 2]) {
      if (this.parts[fd]) this.line(fd, this.parts[fd]);
      this.parts[fd] = null;
    }
    if (this.lines > 0 || this.prefix === NOBODY.prefix) {
      for (const fd of [1, 2]) emit(fd, this.prefix, END_MARK);
    }
    this.closed = true;
    return this.lines;
  }

  line(fd, text) {
    this.lines += 1;
    emit(fd, this.prefix, text);
  }
}

function currentCall() {
  const call = calls.getStore();
  return call && !call.closed ? call : null;
}

function emit(fd, prefix, text) {
  const data = Buffer.concat([prefix, text.subarray(0, MAX_LINE_BYTES), Buffer.of(NEWLINE)]);
  let written = 0;
  for (let tries = 0; written < data.length && tries < FULL_PIPE_RETRIES; ) {
    try {
      written += fs.writeSync(fd, data, written);
    } catch (error) {
      if (error.code !== 'EAGAIN') return;
      tries += 1;
      Atomics.wait(pause, 0, 0, FULL_PIPE_PAUSE_MS);
    }
  }
}

// Takes what some code printed; whole lines go out, the rest waits for its newline.
function put(fd, chunk) {
  const call = currentCall();
  const parts = (call ?? NOBODY).parts;
  let data = parts[fd] ? Buffer.concat([parts[fd], chunk]) : chunk;
  for (let at = data.indexOf(NEWLINE); at >= 0; at = data.indexOf(NEWLINE)) {
    if (call) call.line(fd, data.subarray(0, at));
    else emit(fd, NOBODY.prefix, data.subarray(0, at));
    data = data.subarray(at + 1);
  }
  // Copied: the caller may use its buffer again.
  parts[fd] = data.length ? Buffer.from(data.subarray(0, MAX_LINE_BYTES)) : null;
}

// Stands in for process.stdout and process.stderr. Nothing opens the real ones, which would make the pipes
// non-blocking for everyone who shares them.
class Output extends Writable {
  constructor(fd) {
    super({ decodeStrings: true });
    this.fd = fd;
    this._type = 'pipe';
  }

  _write(chunk, _encoding, done) {
    put(this.fd, chunk);
    done();
  }

  // As with the real ones, nobody can close them.
  _destroy(_error, done) {
    done();
  }
}

function replaceOutputs() {
  for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
    const output = new Output(fd);
    output.end = (...args) => {
      if (args.length && typeof args[0] !== 'function') output.write(args[0]);
      return output;
    };
    output.destroy = () => output;
    output.destroySoon = output.destroy;
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => output });
  }
  process.on('exit', () => {
    for (const fd of [1, 2]) if (NOBODY.parts[fd]) emit(fd, NOBODY.prefix, NOBODY.parts[fd]);
  });
}

// process.env with each call's own values before the process's.
function replaceEnv() {
  process.env = new Proxy(realEnv, {
    get(target, key) {
      const own = calls.getStore()?.env;
      return own && typeof key === 'string' && key in own ? own[key] : target[key];
    },
    getOwnPropertyDescriptor(target, key) {
      const found = Reflect.getOwnPropertyDescriptor(target, key);
      const own = calls.getStore()?.env;
      if (found && own && typeof key === 'string' && key in own) found.value = own[key];
      return found;
    },
  });
}

async function load({ file, main: name, env }) {
  Object.assign(realEnv, env);
  for (const key of ['NAMESPACE', 'ACTION_NAME', 'ACTION_VERSION', 'ACTIVATION_ID', 'TRANSACTION_ID', 'DEADLINE']) {
    // Known to all, so that each call's own value shows up when names are listed.
    realEnv[`__OW_${key}`] ??= '';
  }
  process.argv = [process.argv[0], file];
  const source = fs.readFileSync(file, 'utf8');
  const found = await evaluate(file, source, name);
  if (typeof found !== 'function') {
    throw new Error(`there is no function ${name} in the code: define it at the top or export it`);
  }
  return found;
}

async function evaluate(file, source, name) {
  if (!/^[\p{ID_Start}$_][\p{ID_Continue}$.]*$/u.test(name)) throw new Error(`${inspect(name)} is no function's name`);
  const pick = (exported) => name.split('.').reduce((value, key) => value?.[key], exported);
  const module = new Module(file, null);
  module.filename = file;
  module.paths = Module._nodeModulePaths(path.dirname(file));
  if (isEcmaScriptModule(source)) {
    const esm = file.replace(/\.js$/, '.mjs');
    fs.writeFileSync(esm, source);
    const exported = await import(pathToFileURL(esm).href);
    return pick(exported) ?? pick(exported.default) ?? (name === 'main' ? exported.default : undefined);
  }
  // The function may be local to the module, so it is looked up from within.
  module._compile(`${source}\n;module.embermeshMain = () => { try { return ${name}; } catch { return undefined; } };`, file);
  const exported = module.exports;
  const picked = pick(exported);
  if (typeof picked === 'function') return picked;
  const local = module.embermeshMain();
  if (typeof local === 'function') return local;
  return name === 'main' && typeof exported === 'function' ? exported : undefined;
}

// Has the syntax of one, and does not compile as anything else.
function isEcmaScriptModule(source) {
  if (!/^\s*(import|export)\b/m.test(source)) return false;
  try {
    vm.compileFunction(source, ['exports', 'require', 'module']);
    return false;
  } catch {
    return true;
  }
}

function send(id, status, lines, body) {
  channel.write(`{"id":${id},"status":${status},"lines":${lines},"body":${body}}\n`);
}

async function onInit(id, request) {
  ({ framed, concurrency, max_result_bytes: maxResultBytes } = request);
  try {
    main = await load(request);
  } catch (error) {
    const text = error instanceof Error ? error.stack : inspect(error);
    return send(id, 502, 0, JSON.stringify({ error: `the code cannot be loaded: ${text}`.slice(0, MAX_ERROR_LENGTH) }));
  }
  replaceEnv();
  send(id, 200, 0, '{"ok":true}');
}

function onRun(id, request) {
  const call = new Call(request);
  if (concurrency === 1) Object.assign(realEnv, call.env);
  calls.run(call, async () => {
    const { status, body } = await outcome(request.value ?? {});
    send(id, status, call.close(), body);
  });
}

async function outcome(params) {
  let pending;
  try {
    pending = main(params);
  } catch (error) {
    return failed(error);
  }
  let result;
  try {
    result = await pending;
  } catch (error) {
    if (error instanceof Error) return failed(error);
    // OpenWhisk's way to an application error: Promise.reject({…}).
    result = { error: error ?? {} };
  }
  return encoded(result);
}

function encoded(result) {
  // A function without a return statement.
  if (result === undefined) result = {};
  if (result === null || typeof result !== 'object') {
    return refused(`The action did not return a dictionary or array, but ${result === null ? 'null' : typeof result}`);
  }
  let body;
  try {
    body = JSON.stringify(result);
  } catch (error) {
    return refused(`the action's result cannot be written as JSON: ${error}`);
  }
  if (body === undefined || (body[0] !== '{' && body[0] !== '[')) {
    return refused('The action did not return a dictionary or array, but what becomes neither as JSON');
  }
  const bytes = Buffer.byteLength(body);
  if (bytes > maxResultBytes) {
    const error = `the action's result has ${bytes} bytes, more than the ${maxResultBytes} that are passed on: return less`;
    return { ...refused(error), status: RESULT_TOO_LARGE };
  }
  return { status: 200, body };
}

function failed(error) {
  const known = error instanceof Error;
  put(2, Buffer.from(`${known ? error.stack : inspect(error)}\n`));
  const text = known ? `${error.name}: ${error.message}` : inspect(error);
  return { status: 502, body: JSON.stringify({ error: text.slice(0, MAX_ERROR_LENGTH) }) };
}

function refused(error) {
  put(2, Buffer.from(`${error}\n`));
  return { status: 502, body: JSON.stringify({ error }) };
}

// The message, or null if it can't be read.
function read(line) {
  try {
    return JSON.parse(line.toString());
  } catch (error) {
    // The proxy ends the log: whose it is stands in what can't be read.
    const id = /^{"id":(\d+),/.exec(line.subarray(0, 40).toString())[1];
    send(id, 400, 0, JSON.stringify({ error: `the parameters cannot be read: ${error}` }));
    return null;
  }
}

function listen() {
  let parts = [];
  channel.on('data', (chunk) => {
    for (let at = chunk.indexOf(NEWLINE); at >= 0; at = chunk.indexOf(NEWLINE)) {
      parts.push(chunk.subarray(0, at));
      chunk = chunk.subarray(at + 1);
      const line = parts.length === 1 ? parts[0] : Buffer.concat(parts);
      parts = [];
      const message = read(line);
      if (!message) continue;
      if (message.init) onInit(message.id, message.init);
      else onRun(message.id, message.run);
    }
    if (chunk.length) parts.push(chunk);
  });
  const leave = () => process.exit(0);
  channel.on('error', leave);
  channel.on('close', leave);
  channel.on('end', leave);
}

replaceOutputs();
listen();
