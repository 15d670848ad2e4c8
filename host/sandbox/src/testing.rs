//! Guests for tests: a few lines of WebAssembly text, made into components of the function's world.
//!
//! The text follows the canonical ABI. The part of it that tests need, for contract 0.1.0, which most of them use:
//!
//! ```text
//! handle(topic, payload: ptr len each, content type: flag ptr len, properties: ptr len, at: i64, synced, attempt) -> at
//! at      0 ok: outputs +8 ptr len | 1 failure, +8: 0 reject +16 ptr len | 1 retry +16 ms +24 ptr len
//! output  2 publish: +8 topic ptr len, +16 payload ptr len, +24 content type flag ptr len, +36 retain; 56 bytes each
//! ```

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::{EPOCH, Function, Run, Sandbox, ScopeState, Ticker, compile, engine};
use crate::componentize::{self, push_world};
use crate::contract::Contract;
use sedge_core::grants::Grants;
use sedge_core::isa::Class;
use sedge_core::limits::Limits;
use sedge_core::message::{Failure, FailureCode, Message, Verdict};

pub const LOG: &str = r#"(import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32)))"#;
pub const OPEN: &str = r#"(import "wasi:keyvalue/store@0.2.0-draft2" "open" (func $open (param i32 i32 i32)))"#;
pub const SET: &str = r#"(import "wasi:keyvalue/store@0.2.0-draft2" "[method]bucket.set"
    (func $set (param i32 i32 i32 i32 i32 i32)))"#;
pub const DELETE: &str = r#"(import "wasi:keyvalue/store@0.2.0-draft2" "[method]bucket.delete"
    (func $delete (param i32 i32 i32 i32)))"#;
pub const LIST_KEYS: &str = r#"(import "wasi:keyvalue/store@0.2.0-draft2" "[method]bucket.list-keys"
    (func $list-keys (param i32 i32 i32 i32 i32)))"#;
pub const INCREMENT: &str = r#"(import "wasi:keyvalue/atomics@0.2.0-draft2" "increment"
    (func $increment (param i32 i32 i32 i64 i32)))"#;
pub const CAS_NEW: &str = r#"(import "wasi:keyvalue/atomics@0.2.0-draft2" "[static]cas.new"
    (func $cas-new (param i32 i32 i32 i32)))"#;
pub const CAS_DROP: &str = r#"(import "wasi:keyvalue/atomics@0.2.0-draft2" "[resource-drop]cas"
    (func $cas-drop (param i32)))"#;

/// Opens the only bucket and leaves its handle.
pub const BUCKET: &str = "(call $open (i32.const 0) (i32.const 0) (i32.const 1000)) (i32.load (i32.const 1004))";

/// Returns the zeros at 16: ok, no outputs.
pub const NOTHING: &str = "(i32.const 16)";

/// Text of a core module whose handler runs `code`, which leaves the address of its result. `items` begin with the imports.
pub fn module(items: &str, code: &str) -> String {
    module_of(items, "(memory (export \"memory\") 2)", code)
}

/// Text of the same module with another memory.
pub fn module_of(items: &str, memory: &str, code: &str) -> String {
    format!(
        r#"(module
            {items}
            {memory}
            (global $free (mut i32) (i32.const 32768))
            (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32) (local $at i32)
                (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
                (global.set $free (i32.add (local.get $at) (local.get $size)))
                (local.get $at))
            (func $handle (export "sedge:function/handler@0.1.0#handle")
                (param $topic i32) (param $topic-len i32) (param $payload i32) (param $payload-len i32)
                (param i32 i32 i32 i32 i32 i64 i32) (param $attempt i32) (result i32)
                (local $bucket i32) (local $n i32) (local $m i32)
                {code}))"#
    )
}

/// Text of the same module for contract 0.2.0, whose handler is given the address of a record in `$message`.
pub fn module_0_2(items: &str, code: &str) -> String {
    let text = module(items, code);
    let (before, handler) = text.split_once("(func $handle").unwrap();
    let (_, locals) = handler.split_once("(local ").unwrap();
    let handle = Contract::V0_2.handle();
    format!("{before}(func $handle (export \"{handle}\") (param $message i32) (result i32) (local {locals}")
}

/// The component made of a core module's text.
pub fn component_of(module: &str) -> Vec<u8> {
    let contract = if module.contains(Contract::V0_2.handle()) { Contract::V0_2 } else { Contract::V0_1 };
    let mut module = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}"));
    push_world(&mut module, contract);
    componentize::from_module(&module).unwrap_or_else(|error| panic!("{:#}", anyhow::Error::from(error)))
}

/// The component of [`module`].
pub fn component(items: &str, code: &str) -> Vec<u8> {
    component_of(&module(items, code))
}

/// The compiled code of [`component`], for functions of the small class.
pub fn code(items: &str, code: &str) -> Bytes {
    compile::component(&component(items, code), Class::Small).unwrap().into()
}

pub const LIMITS: Limits = Limits {
    fuel: 10_000_000,
    timeout_ms: 10_000,
    memory_bytes: 4 << 20,
    outputs: 64,
    output_bytes: 65_536,
    state_bytes: 65_536,
};

pub fn message(topic: &str, payload: &[u8]) -> Message {
    Message::new(topic, Bytes::copy_from_slice(payload), 1_700_000_000_000, true)
}

/// Sandboxes with a ticking clock: one for functions as they are compiled, and one for the same functions as whole components.
#[derive(Default)]
pub struct Bench {
    sandbox: Sandbox,
    whole: Sandbox,
    ended: Arc<AtomicBool>,
}

/// One function loaded in both ways. The two must agree in everything but fuel, which the parts of a component cost too.
pub struct Both {
    /// As compiled: the main module only.
    pub module: Function,
    pub component: Function,
}

impl Bench {
    pub fn load(&mut self, component: &[u8], limits: Limits) -> Both {
        self.load_granted(component, limits, Grants::default())
    }

    pub fn load_granted(&mut self, component: &[u8], limits: Limits, grants: Grants) -> Both {
        let class = Class::for_memory(limits.memory_bytes);
        let code =
            compile::component(component, class).unwrap_or_else(|error| panic!("{:#}", anyhow::Error::from(error)));
        let whole = engine::for_compiling(class, None).unwrap().precompile_component(component).unwrap();
        let both = Both {
            module: load(&mut self.sandbox, &code, limits, grants),
            component: load(&mut self.whole, &whole, limits, grants),
        };
        assert!(both.module.is_one_module() && !both.component.is_one_module());
        self.start_ticking();
        both
    }

    /// Adds one tick to those of the clock.
    pub fn tick(&self) {
        self.sandbox.ticker().tick();
        self.whole.ticker().tick();
    }

    fn start_ticking(&mut self) {
        // Tickers made before the last load may lack its engine.
        self.ended.store(true, Ordering::Relaxed);
        self.ended = Arc::default();
        let (ended, tickers) = (Arc::clone(&self.ended), [self.sandbox.ticker(), self.whole.ticker()]);
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(EPOCH);
                tickers.iter().for_each(Ticker::tick);
            }
        });
    }
}

pub fn load(sandbox: &mut Sandbox, code: &[u8], limits: Limits, grants: Grants) -> Function {
    let settings = Arc::from([("max".to_owned(), "80".to_owned())]);
    sandbox.load(code, limits, grants, settings).unwrap_or_else(|error| panic!("{:#}", anyhow::Error::from(error)))
}

impl Both {
    #[track_caller]
    pub fn invoke(&self, message: &Message, state: ScopeState) -> Run {
        let whole = self.component.invoke(message, state.clone());
        let run = self.module.invoke(message, state);
        match (&run.outcome.verdict, &whole.outcome.verdict) {
            (Verdict::Failed(one), Verdict::Failed(other)) => {
                assert_eq!(one.code, other.code, "{one:?} {other:?}");
                // For other failures the engine has its own texts.
                if matches!(one.code, FailureCode::Fuel | FailureCode::Memory | FailureCode::State) {
                    assert_eq!(one.detail, other.detail);
                }
            }
            (one, other) => assert_eq!(one, other),
        }
        assert_eq!(run.outcome.writes, whole.outcome.writes);
        assert_eq!((&run.log, run.log_lines_dropped), (&whole.log, whole.log_lines_dropped));
        let (one, other) = (run.outcome.usage, whole.outcome.usage);
        assert_eq!((one.memory_bytes, one.output_bytes), (other.memory_bytes, other.output_bytes));
        assert!(run.state.entries().eq(whole.state.entries()) && run.state.bytes() == whole.state.bytes());
        run
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Runs a component once, without state.
#[track_caller]
pub fn run(component: &[u8], limits: Limits) -> Run {
    run_with(component, limits, ScopeState::default())
}

#[track_caller]
pub fn run_with(component: &[u8], limits: Limits, state: ScopeState) -> Run {
    Bench::default().load(component, limits).invoke(&message("sensors/a", b"21.5"), state)
}

impl Run {
    #[track_caller]
    pub fn failure(&self) -> &Failure {
        match &self.outcome.verdict {
            Verdict::Failed(failure) => failure,
            other => panic!("the run did not fail: {other:?}"),
        }
    }

    /// The number of outputs of a run that succeeded.
    #[track_caller]
    pub fn outputs(&self) -> usize {
        match &self.outcome.verdict {
            Verdict::Done(outputs) => outputs.len(),
            other => panic!("the run failed: {other:?}"),
        }
    }
}
