/tmp/wt/guests/examples/target/wasm32-unknown-unknown/release/deps/threshold_alert.d: threshold-alert/src/lib.rs

/tmp/wt/guests/examples/target/wasm32-unknown-unknown/release/deps/threshold_alert.wasm: threshold-alert/src/lib.rs

/tmp/wt/guests/examples/target/wasm32-unknown-unknown/release/deps/libthreshold_alert.rlib: threshold-alert/src/lib.rs

threshold-alert/src/lib.rs:
