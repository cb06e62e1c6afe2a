"""Runs a WebAssembly program of this package, printing what it says: python3 run_wasm.py PROGRAM.wasm"""

import sys

import wasmtime

store = wasmtime.Store()
module = wasmtime.Module.from_file(store.engine, sys.argv[1])
linker = wasmtime.Linker(store.engine)


def say(caller, start, length):
    text = caller["memory"].read(caller, start, start + length)
    print(text.decode(), flush=True)


signature = wasmtime.FuncType([wasmtime.ValType.i32(), wasmtime.ValType.i32()], [])
linker.define_func("host", "print", signature, say, access_caller=True)
# A panic is a trap, which ends this with an error.
linker.instantiate(store, module).exports(store)["main"](store, 0, 0)
