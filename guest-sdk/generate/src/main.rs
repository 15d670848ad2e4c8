//! Writes the guest's bindings: `cargo run` here after any change to `../wit`.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator};
use wit_bindgen_rust::Opts;
use wit_component::StringEncoding;

fn main() -> anyhow::Result<()> {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(sdk.join("wit"))?;
    for (world, file) in [("function", "component-type.bin"), ("function-with-std", "component-type-with-std.bin")] {
        let world = resolve.select_world(&[package], Some(world))?;
        let component_type = wit_component::metadata::encode(&resolve, world, StringEncoding::UTF8, None, false)?;
        fs::write(sdk.join("src").join(file), component_type)?;
    }
    let world = resolve.select_world(&[package], Some("function"))?;

    let mut files = Files::default();
    let options = Opts {
        format: true,
        generate_all: true,
        runtime_path: Some("crate::rt".into()),
        additional_derive_attributes: vec!["PartialEq".into()],
        // It holds a resource, which has no equality.
        additional_derive_ignore: vec!["cas-error".into()],
        disable_run_ctors_once_workaround: true,
        disable_custom_section_link_helpers: true,
        ..Opts::default()
    };
    options.build().generate(&mut resolve, world, &mut files)?;
    let mut sources = files.iter();
    let (name, source) = sources.next().context("no bindings were generated")?;
    ensure!(sources.next().is_none(), "more than one file was generated");
    let source = std::str::from_utf8(source)?;
    // `export!` puts the component type into the function's own crate, where no linker drops it.
    let end = source.rfind("#[rustfmt::skip]\n#[cfg(target_arch").context("no component type at the end")?;
    fs::write(sdk.join("src/bindings.rs"), &source[..end])?;
    println!("{name}: {end} bytes");
    Ok(())
}
