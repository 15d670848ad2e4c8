//! Components that are refused before they run, and the errors.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

use std::sync::Arc;

use wasmparser::{Parser, Payload};

use crate::shape::{MAX_WASM_BYTES, ShapeError, check};
use crate::testing::{LIMITS, LOG, NOTHING, component, component_of, module, module_of};
use crate::{Sandbox, compile};
use sedge_core::grants::Grants;
use sedge_core::isa::Class;
use sedge_core::limits::Limits;

const LARGE: usize = Class::Large.memory_bytes();

#[track_caller]
fn check_refused(wasm: &[u8], class: Class, expected: &str) {
    let error = format!("{:#}", anyhow::Error::from(compile::component(wasm, class).map(drop).unwrap_err()));
    assert!(error.contains(expected), "{error}");
}

#[track_caller]
fn check_over(wasm: &[u8], expected: &str) {
    let error = check(wasm, LARGE).unwrap_err();
    assert!(matches!(error, ShapeError::OverLimit { .. }) && error.to_string().contains(expected), "{error}");
    check_refused(wasm, Class::Large, expected);
}

#[track_caller]
fn fits(wasm: &[u8]) {
    check(wasm, LARGE).unwrap();
}

fn text(wat: &str) -> Vec<u8> {
    wat::parse_str(wat).unwrap()
}

/// A core module with these items, inside a component that does nothing else.
fn holds(items: &str) -> Vec<u8> {
    text(&format!("(component (core module {items}))"))
}

/// Adds another component and an instance of it.
fn with_instance(mut component: Vec<u8>, other: &[u8]) -> Vec<u8> {
    let nested = Parser::new(0)
        .parse_all(&component)
        .filter(|payload| matches!(payload, Ok(Payload::ComponentSection { .. })))
        .count();
    let length = u16::try_from(other.len()).unwrap();
    component.extend_from_slice(&[4, length as u8 | 0x80, (length >> 7) as u8]);
    component.extend_from_slice(other);
    component.extend_from_slice(&[5, 4, 1, 0, nested as u8, 0]);
    component
}

#[test]
fn files_that_are_not_components_are_named() {
    check_refused(b"", Class::Small, "not WebAssembly");
    check_refused(b"#!/bin/sh", Class::Small, "not WebAssembly: it starts with [23, 21, 2f, 62]");
    check_refused(b"\x7fELF\x02\x01\x01", Class::Small, "not WebAssembly");
    check_refused(&text(&module("", NOTHING)), Class::Small, "this is a core module, not a component");
    let whole = component("", NOTHING);
    for length in [5, 8, 20, whole.len() / 2, whole.len() - 1] {
        assert!(compile::component(&whole[..length], Class::Small).is_err(), "cut to {length} bytes");
    }
    let mut damaged = whole.clone();
    damaged[12] ^= 0xff;
    check_refused(&damaged, Class::Small, "malformed");
}

#[test]
fn size_is_limited() {
    let padded = |bytes: usize| {
        let mut wasm = component("", NOTHING);
        // A custom section of one name, then nothing but padding.
        let mut rest = bytes - wasm.len() - 1 - 4;
        wasm.push(0);
        wasm.extend((0..4).map(|place| (rest >> (7 * place)) as u8 & 0x7f | if place < 3 { 0x80 } else { 0 }));
        wasm.extend_from_slice(&[1, b'x']);
        rest -= 2;
        wasm.resize(wasm.len() + rest, 0);
        assert_eq!(wasm.len(), bytes);
        wasm
    };
    fits(&padded(MAX_WASM_BYTES));
    check_over(&padded(MAX_WASM_BYTES + 1), "8388609 bytes, the limit is 8388608");
}

#[test]
fn functions_are_counted() {
    fits(&holds(&"(func)".repeat(20_000)));
    check_over(&holds(&"(func)".repeat(20_001)), "20001 functions, the limit is 20000");
    let two = text(&format!("(component (core module {0}) (core module {0}))", "(func)".repeat(10_001)));
    check_over(&two, "20002 functions");
    let body = |bytes: usize| holds(&format!("(func {})", "nop ".repeat(bytes - 2)));
    fits(&body(256 << 10));
    check_over(&body((256 << 10) + 1), "262145 bytes in one function body, the limit is 262144");
}

#[test]
fn memories_and_tables_are_counted() {
    fits(&holds("(memory 1)"));
    let two = check(&text("(component (core module (memory 1)) (core module (memory 1)))"), LARGE).unwrap_err();
    assert!(matches!(two, ShapeError::Memories { found: 2 }) && two.to_string().contains("language runtime"), "{two}");
    fits(&holds(&"(table 1 funcref)".repeat(4)));
    check_over(&holds(&"(table 1 funcref)".repeat(5)), "5 tables, the limit is 4");
    fits(&holds("(table 10000 funcref)"));
    check_over(&holds("(table 10001 funcref)"), "10001 elements in one table, the limit is 10000");
    check_over(&holds("(table 4294967295 funcref)"), "4294967295 elements in one table");
}

#[test]
fn modules_components_and_instances_are_counted() {
    fits(&text(&format!("(component {})", "(core module)".repeat(8))));
    check_over(&text(&format!("(component {})", "(core module)".repeat(9))), "9 core modules, the limit is 8");
    fits(&text(&format!("(component {})", "(component)".repeat(7))));
    check_over(&text(&format!("(component {})", "(component)".repeat(8))), "9 components, the limit is 8");
    let deep = format!("{}{}", "(component ".repeat(50), ")".repeat(50));
    check_over(&text(&deep), "components, the limit is 8");
    let instances = |count: usize| {
        text(&format!("(component (core module $m) {})", "(core instance (instantiate $m))".repeat(count)))
    };
    fits(&instances(16));
    check_over(&instances(17), "17 core instances, the limit is 16");
    let nested =
        |count: usize| text(&format!("(component (component $c) {})", "(instance (instantiate $c))".repeat(count)));
    fits(&nested(16));
    check_over(&nested(17), "17 component instances, the limit is 16");
    // Each level instantiates the one below it twice: few instances as written, 32 at run time.
    let twice = |of: &str, name: &str| {
        format!(
            "(component ${name} (alias outer 1 ${of} (component $x)) (instance (instantiate $x)) (instance (instantiate $x)))"
        )
    };
    let doubling = format!(
        "(component (component $a (core module $m) (core instance (instantiate $m))) {} {} {} {}
            (instance (instantiate $e)) (instance (instantiate $e)))",
        twice("a", "b"),
        twice("b", "c"),
        twice("c", "d"),
        twice("d", "e")
    );
    check_refused(&with_instance(component("", NOTHING), &text(&doubling)), Class::Small, "core module instances");
}

#[test]
fn other_proposals_are_refused() {
    for (items, what) in [
        ("(memory i64 1)", "memory64"),
        ("(memory 1 1 shared)", "threads"),
        ("(func $f (return_call $f))", "tail calls"),
        ("(tag)", "exceptions"),
        ("(type (struct (field i32)))", "gc"),
        (
            "(func (drop (f32x4.relaxed_madd (v128.const i32x4 0 0 0 0) (v128.const i32x4 0 0 0 0)
            (v128.const i32x4 0 0 0 0))))",
            "relaxed SIMD",
        ),
        ("(memory 1 (pagesize 1))", "custom page sizes"),
    ] {
        let error = check(&holds(items), LARGE).unwrap_err();
        assert!(matches!(error, ShapeError::Malformed(_)), "{what}: {error}");
    }
    fits(&holds("(func (result v128) (i8x16.splat (i32.const 1)))"));
}

/// Memory that no run could ever get is refused before compiling, not message by message.
#[test]
fn memory_beyond_the_class_is_refused() {
    let declares = |pages| component_of(&module_of("", &format!("(memory (export \"memory\") {pages})"), NOTHING));
    compile::component(&declares(64), Class::Small).map(drop).unwrap();
    check_refused(&declares(65), Class::Small, "4259840 bytes of memory to start with, the limit is 4194304");
    compile::component(&declares(65), Class::Large).map(drop).unwrap();
    check_refused(&declares(1025), Class::Large, "67174400 bytes of memory to start with, the limit is 67108864");
    check_refused(&declares(65_536), Class::Large, "4294967296 bytes of memory to start with");
}

/// The worker's engine has more limits than the compiler's.
#[test]
fn components_that_the_worker_could_not_load_are_refused() {
    let globals = "(global (mut i64) (i64.const 0))".repeat(20_000);
    check_refused(&component(&globals, NOTHING), Class::Small, "instance allocation for this module requires");
}

#[test]
fn an_import_outside_the_world_is_named() {
    let imports = |what: &str| text(&format!("(component (import \"{what}\" (instance (export \"f\" (func)))))"));
    for name in ["wasi:sockets/tcp-create-socket@0.2.0", "wasi:http/outgoing-handler@0.2.0"] {
        check_refused(&imports(name), Class::Small, &format!("`{name}`, which boards do not have"));
        check_refused(&imports(name), Class::Small, "a function has no network");
    }
    check_refused(&imports("wasi:filesystem/types@0.2.0"), Class::Small, "is not one core module with the usual shims");
    check_refused(&imports("wasi:keyvalue/store@0.2.0-draft"), Class::Small, "wasi:keyvalue/store@0.2.0-draft");
    let unknown_function =
        text("(component (import \"wasi:logging/logging@0.1.0-draft\" (instance (export \"erase\" (func)))))");
    check_refused(&unknown_function, Class::Small, "erase");
}

#[test]
fn another_world_is_refused() {
    check_refused(&text("(component)"), Class::Small, "sedge:function/handler@0.2.0");
    let command = text(
        "(component (core module $m (func (export \"f\"))) (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i \"f\"))) (instance $run (export \"run\" (func $f)))
            (export \"wasi:cli/run@0.2.0\" (instance $run)))",
    );
    check_refused(&command, Class::Small, "is not one core module with the usual shims");
    let wrong_type = text(
        "(component (core module $m (func (export \"f\"))) (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i \"f\"))) (instance $run (export \"handle\" (func $f)))
            (export \"sedge:function/handler@0.1.0\" (instance $run)))",
    );
    check_refused(&wrong_type, Class::Small, "sedge:function");
    let later = text("(component (instance $i) (export \"sedge:function/handler@0.9.0\" (instance $i)))");
    check_refused(&later, Class::Small, "runs the versions 0.1.0 and 0.2.0 of the contract");
}

#[test]
fn code_is_loaded_only_where_it_was_compiled_for() {
    let small = compile::component(&component(LOG, NOTHING), Class::Small).unwrap();
    let settings = || Arc::from([]);
    Sandbox::new().load(&small, LIMITS, Grants::default(), settings()).map(drop).unwrap();
    let large = Limits { memory_bytes: 32 << 20, ..LIMITS };
    assert!(Sandbox::new().load(&small, large, Grants::default(), settings()).is_err(), "another class");
    assert!(
        Sandbox::new().load(&component(LOG, NOTHING), LIMITS, Grants::default(), settings()).is_err(),
        "wasm, not code"
    );
    assert!(Sandbox::new().load(&[], LIMITS, Grants::default(), settings()).is_err());
}
