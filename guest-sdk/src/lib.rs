//! Write Sedge functions.
#![no_std]
extern crate alloc;

#[cfg(target_family = "wasm")]
pub mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "function", generate_all, pub_export_macro: true, default_bindings_module: "sedge_function::bindings", disable_run_ctors_once_workaround: true });
}
