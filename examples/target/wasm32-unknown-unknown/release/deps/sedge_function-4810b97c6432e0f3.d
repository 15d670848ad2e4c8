/tmp/wt/guests/examples/target/wasm32-unknown-unknown/release/deps/sedge_function-4810b97c6432e0f3.d: /tmp/wt/guests/guest-sdk/src/lib.rs /tmp/wt/guests/guest-sdk/src/allocator.rs /tmp/wt/guests/guest-sdk/src/host.rs /tmp/wt/guests/guest-sdk/src/json.rs /tmp/wt/guests/guest-sdk/src/log.rs /tmp/wt/guests/guest-sdk/src/message.rs /tmp/wt/guests/guest-sdk/src/number.rs /tmp/wt/guests/guest-sdk/src/output.rs /tmp/wt/guests/guest-sdk/src/piece.rs /tmp/wt/guests/guest-sdk/src/rt.rs /tmp/wt/guests/guest-sdk/src/setting.rs /tmp/wt/guests/guest-sdk/src/state.rs /tmp/wt/guests/guest-sdk/src/bindings.rs /tmp/wt/guests/guest-sdk/src/component-type.bin

/tmp/wt/guests/examples/target/wasm32-unknown-unknown/release/deps/libsedge_function-4810b97c6432e0f3.rlib: /tmp/wt/guests/guest-sdk/src/lib.rs /tmp/wt/guests/guest-sdk/src/allocator.rs /tmp/wt/guests/guest-sdk/src/host.rs /tmp/wt/guests/guest-sdk/src/json.rs /tmp/wt/guests/guest-sdk/src/log.rs /tmp/wt/guests/guest-sdk/src/message.rs /tmp/wt/guests/guest-sdk/src/number.rs /tmp/wt/guests/guest-sdk/src/output.rs /tmp/wt/guests/guest-sdk/src/piece.rs /tmp/wt/guests/guest-sdk/src/rt.rs /tmp/wt/guests/guest-sdk/src/setting.rs /tmp/wt/guests/guest-sdk/src/state.rs /tmp/wt/guests/guest-sdk/src/bindings.rs /tmp/wt/guests/guest-sdk/src/component-type.bin

/tmp/wt/guests/examples/target/wasm32-unknown-unknown/release/deps/libsedge_function-4810b97c6432e0f3.rmeta: /tmp/wt/guests/guest-sdk/src/lib.rs /tmp/wt/guests/guest-sdk/src/allocator.rs /tmp/wt/guests/guest-sdk/src/host.rs /tmp/wt/guests/guest-sdk/src/json.rs /tmp/wt/guests/guest-sdk/src/log.rs /tmp/wt/guests/guest-sdk/src/message.rs /tmp/wt/guests/guest-sdk/src/number.rs /tmp/wt/guests/guest-sdk/src/output.rs /tmp/wt/guests/guest-sdk/src/piece.rs /tmp/wt/guests/guest-sdk/src/rt.rs /tmp/wt/guests/guest-sdk/src/setting.rs /tmp/wt/guests/guest-sdk/src/state.rs /tmp/wt/guests/guest-sdk/src/bindings.rs /tmp/wt/guests/guest-sdk/src/component-type.bin

/tmp/wt/guests/guest-sdk/src/lib.rs:
/tmp/wt/guests/guest-sdk/src/allocator.rs:
/tmp/wt/guests/guest-sdk/src/host.rs:
/tmp/wt/guests/guest-sdk/src/json.rs:
/tmp/wt/guests/guest-sdk/src/log.rs:
/tmp/wt/guests/guest-sdk/src/message.rs:
/tmp/wt/guests/guest-sdk/src/number.rs:
/tmp/wt/guests/guest-sdk/src/output.rs:
/tmp/wt/guests/guest-sdk/src/piece.rs:
/tmp/wt/guests/guest-sdk/src/rt.rs:
/tmp/wt/guests/guest-sdk/src/setting.rs:
/tmp/wt/guests/guest-sdk/src/state.rs:
/tmp/wt/guests/guest-sdk/src/bindings.rs:
/tmp/wt/guests/guest-sdk/src/component-type.bin:
