//! Write Sedge functions.
#![no_std]
extern crate alloc;

#[cfg(target_family = "wasm")]
pub mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "function" });
}
