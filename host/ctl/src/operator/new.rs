//! `sedge new NAME`: a folder with a function in Rust that compiles and passes its test, or in JavaScript or TypeScript, that can be
//! pushed.

mod sdk;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::terminal;
use sdk::Sdk;
use sedge_core::manifest;

const FUNCTION_JS: &str = "function.js";
const FUNCTION_TS: &str = "function.ts";

/// Path and template of each file of a function in JavaScript.
const SCRIPT: [(&str, &str); 4] = [
    (manifest::FILE_NAME, include_str!("new/js/function.toml.in")),
    (FUNCTION_JS, include_str!("new/js/function.js.in")),
    ("sedge.d.ts", include_str!("new/js/sedge.d.ts.in")),
    CASE,
];

/// The same of a function in TypeScript. Its settings for editors leave out what only browsers have, and the log is one of that.
const TYPESCRIPT: [(&str, &str); 5] = [
    SCRIPT[0],
    (FUNCTION_TS, include_str!("new/ts/function.ts.in")),
    ("sedge.d.ts", concat!(include_str!("new/js/sedge.d.ts.in"), include_str!("new/ts/console.d.ts.in"))),
    ("tsconfig.json", include_str!("new/ts/tsconfig.json.in")),
    CASE,
];

/// The same for the decoder of a device.
const DECODER: [(&str, &str); 3] = [
    (manifest::FILE_NAME, include_str!("new/js/decoder.toml.in")),
    (FUNCTION_JS, include_str!("new/js/decoder.js.in")),
    SCRIPT[2],
];

/// A first case for `sedge test`, of the function in all languages.
const CASE: (&str, &str) = ("tests/too-warm.toml", include_str!("new/case.toml.in"));

/// Path and template of each file.
const FILES: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("new/Cargo.toml.in")),
    (manifest::FILE_NAME, include_str!("new/function.toml.in")),
    ("src/lib.rs", include_str!("new/lib.rs.in")),
    ("README.md", include_str!("new/README.md.in")),
    (".gitignore", include_str!("new/gitignore.in")),
    CASE,
];

#[derive(Debug, Args)]
pub struct NewArgs {
    /// Name of the function: a to z, 0 to 9 and -, beginning with a letter
    #[arg(value_parser = name)]
    name: String,
    /// Language of the function
    #[arg(long, value_name = "LANG", default_value = "rust")]
    lang: Lang,
    /// Decoder of a LoRaWAN device, as The Things Stack or ChirpStack use it. It is copied, and the function runs it on every
    /// uplink
    #[arg(long, value_name = "FILE")]
    decoder: Option<PathBuf>,
    /// Folder to create [default: NAME]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Folder guest-sdk of a checkout [default: of the checkout that holds the new folder or this program; else it is
    /// written into the new folder]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Lang {
    Rust,
    /// JavaScript, which needs no tools
    Js,
    /// TypeScript, which needs none either
    Ts,
}

fn name(text: &str) -> Result<String, String> {
    // As Cargo requires.
    if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err("begin with a letter from a to z".into());
    }
    if text.len() > 64 || !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Err("use at most 64 of a to z, 0 to 9 and -".into());
    }
    Ok(text.to_owned())
}

pub fn run(args: &NewArgs) -> anyhow::Result<()> {
    let dir = args.dir.clone().unwrap_or_else(|| args.name.clone().into());
    let is_vacant = fs::read_dir(&dir).map_or_else(|_| !dir.exists(), |mut entries| entries.next().is_none());
    if !is_vacant {
        bail!("{} already exists and is not empty: name another folder with --dir", dir.display());
    }
    if args.decoder.is_some() && args.lang != Lang::Js {
        bail!("a decoder is JavaScript: add --lang js");
    }
    if args.lang != Lang::Rust {
        return script(args, &dir);
    }
    let created = !dir.exists();
    fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    let sdk = match Sdk::find(args.sdk.as_deref(), &dir) {
        Ok(sdk) => sdk,
        Err(error) => {
            if created {
                let _ = fs::remove_dir(&dir);
            }
            return Err(error);
        }
    };
    let dependency = sdk.dependency(&dir)?;
    write(&dir, &FILES, &[("name", &args.name), ("sdk", &dependency)])?;

    let mut out = terminal::out();
    if args.json {
        writeln!(out, "{}", terminal::json(&json!({ "name": args.name, "dir": dir, "sdk": sdk.folder() })))?;
        return Ok(());
    }
    let shown = dir.display();
    writeln!(
        out,
        "function   {} in {shown}: src/lib.rs, and function.toml for topics, settings and permissions",
        args.name
    )?;
    let from = if sdk.is_written { ", written from this program" } else { "" };
    writeln!(out, "sdk        {}{from}", sdk.folder().display())?;
    writeln!(out, "next       cargo test --manifest-path {}", dir.join("Cargo.toml").display())?;
    writeln!(out, "           sedge build {shown}")?;
    writeln!(out, "           sedge invoke {shown} --topic sensors/oven/temperature --payload 81.5")?;
    writeln!(out, "           sedge push {shown} --node BOARD --key KEY.pem")?;
    Ok(())
}

/// Writes the files of a function, with their places filled in.
fn write(dir: &Path, files: &[(&str, &str)], values: &[(&str, &str)]) -> anyhow::Result<()> {
    for (file, blank) in files {
        let path = dir.join(file);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
        }
        let fill = |text: String, (name, value): &(&str, &str)| text.replace(&format!("{{{{{name}}}}}"), value);
        let text = values.iter().fold((*blank).to_owned(), fill);
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}

fn script(args: &NewArgs, dir: &Path) -> anyhow::Result<()> {
    if args.sdk.is_some() {
        bail!("a script needs no SDK: leave out --sdk");
    }
    let (files, main) = match (&args.decoder, args.lang) {
        (Some(_), _) => (&DECODER[..], FUNCTION_JS),
        (None, Lang::Ts) => (&TYPESCRIPT[..], FUNCTION_TS),
        (None, _) => (&SCRIPT[..], FUNCTION_JS),
    };
    let mut copied = String::new();
    if let Some(decoder) = &args.decoder {
        let source = fs::read_to_string(decoder).with_context(|| format!("failed to read {}", decoder.display()))?;
        let name = decoder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // The name is a part of the source, and the function has a file of its own.
        copied = match name {
            FUNCTION_JS => "decoder.js".to_owned(),
            name if name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) => {
                name.to_owned()
            }
            _ => "decoder.js".to_owned(),
        };
        write(dir, &[(&copied, "{{source}}")], &[("source", &source)])?;
    }
    write(dir, files, &[("name", &args.name), ("decoder", &copied)])?;
    let mut out = terminal::out();
    if args.json {
        writeln!(out, "{}", terminal::json(&json!({ "name": args.name, "dir": dir, "sdk": Value::Null })))?;
        return Ok(());
    }
    let shown = dir.display();
    writeln!(
        out,
        "function   {} in {shown}: {main}, and function.toml for topics, settings and permissions",
        args.name
    )?;
    match args.decoder {
        None => writeln!(out, "next       sedge test {shown}")?,
        Some(_) => writeln!(out, "next       sedge invoke {shown} --topic raw/DEVICE --payload @PAYLOAD.bin")?,
    }
    writeln!(out, "           sedge push {shown} --node BOARD --key KEY.pem")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::sdk::{FOLDER as SDK, is_sdk};
    use super::*;
    use sedge_core::manifest::{Limits, Manifest};

    fn args(name: &str, dir: &Path, sdk: Option<PathBuf>) -> NewArgs {
        NewArgs { name: name.into(), lang: Lang::Rust, decoder: None, dir: Some(dir.into()), sdk, json: true }
    }

    /// A folder like a checkout.
    fn checkout() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join(SDK)).unwrap();
        fs::write(root.join(SDK).join("Cargo.toml"), "[package]\nname = \"sedge-function\"\n").unwrap();
        (folder, root)
    }

    fn dependency(dir: &Path) -> toml::Value {
        let text = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        toml::from_str::<toml::Value>(&text).unwrap()["dependencies"]["sedge-function"].clone()
    }

    #[test]
    fn the_manifest_is_good_and_the_function_short() {
        let (_folder, root) = checkout();
        let dir = root.join("functions/door-alarm");
        run(&args("door-alarm", &dir, None)).unwrap();
        let manifest = Manifest::load(&dir, &sedge_sandbox::machine::MACHINE).unwrap();
        assert_eq!((&*manifest.name, manifest.serial), ("door-alarm", 0));
        assert!(!fs::read_to_string(dir.join("README.md")).unwrap().contains("{{"));
        let source = fs::read_to_string(dir.join("src/lib.rs")).unwrap();
        let function =
            source.split("#[cfg(test)]").next().unwrap().split("use sedge_function::prelude::*;").nth(1).unwrap();
        let lines = function.lines().filter(|line| !line.trim().is_empty()).count();
        assert!(lines < 20, "{lines} lines:{function}");
    }

    #[test]
    fn a_script_is_written_with_its_decoder() {
        let folder = tempfile::tempdir().unwrap();
        let js = |name: &str, decoder: Option<PathBuf>| {
            let dir = folder.path().join(name);
            let args = NewArgs { lang: Lang::Js, decoder, ..args(name, &dir, None) };
            run(&args).map(|()| dir)
        };
        let dir = js("door", None).unwrap();
        let manifest = Manifest::load(&dir, &sedge_sandbox::machine::MACHINE).unwrap();
        assert_eq!((&*manifest.name, manifest.serial), ("door", 0));
        assert!(js("door", None).unwrap_err().to_string().contains("not empty"));
        let decoder = folder.path().join("function.js");
        fs::write(&decoder, "function Decoder() { return '{{name}}' }").unwrap();
        let dir = js("meter", Some(decoder.clone())).unwrap();
        Manifest::load(&dir, &sedge_sandbox::machine::MACHINE).unwrap();
        assert!(fs::read_to_string(dir.join("function.js")).unwrap().contains("import \"./decoder.js\" with"));
        assert_eq!(fs::read(dir.join("decoder.js")).unwrap(), fs::read(&decoder).unwrap(), "unchanged");
        let error = js("gone", Some(folder.path().join("gone.js"))).unwrap_err().to_string();
        assert!(error.contains("gone.js") && !folder.path().join("gone").exists(), "{error}");
        let rust = NewArgs { decoder: Some(decoder), ..args("rust", &folder.path().join("rust"), None) };
        assert!(run(&rust).unwrap_err().to_string().contains("--lang js"));
    }

    #[test]
    fn a_function_in_typescript_has_settings_for_editors() {
        let folder = tempfile::tempdir().unwrap();
        let ts = |name: &str, decoder: Option<PathBuf>| {
            let dir = folder.path().join(name);
            let args = NewArgs { lang: Lang::Ts, decoder, ..args(name, &dir, None) };
            run(&args).map(|()| dir)
        };
        let dir = ts("door", None).unwrap();
        let manifest = Manifest::load(&dir, &sedge_sandbox::machine::MACHINE).unwrap();
        assert_eq!(crate::runner::component(&dir, &manifest).unwrap(), dir.join("function.ts"));
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
        assert!(read("tsconfig.json").contains("\"erasableSyntaxOnly\": true"));
        assert!(
            read("sedge.d.ts").contains("declare module \"sedge\"") && read("sedge.d.ts").contains("const console")
        );
        // Nobody but its author knows which of two files is the function.
        fs::write(dir.join("function.js"), "").unwrap();
        let error = crate::runner::component(&dir, &manifest).unwrap_err().to_string();
        assert!(error.contains("both function.js and function.ts"), "{error}");
        let error = ts("meter", Some(dir.join("function.js"))).unwrap_err().to_string();
        assert!(error.contains("--lang js") && !folder.path().join("meter").exists(), "{error}");
    }

    #[test]
    fn commented_settings_of_the_manifest_are_the_defaults() {
        let blank = FILES[1].1.replace("{{name}}", "a");
        // Commented settings, except examples that differ from the default.
        let on = |line: &str| match line.strip_prefix("# ") {
            Some(rest)
                if rest.starts_with('[')
                    || (rest.contains(" = ") && !rest.contains("every") && !rest.contains("serial")) =>
            {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let text: Vec<String> = blank.lines().map(on).collect();
        let all = Manifest::from_toml(&text.join("\n"), Path::new("function.toml"), None).unwrap();
        assert_eq!(all.limits, Limits::default());
        assert!(all.allow.publish.iter().any(|filter| filter.matches("derived/x")));
    }

    #[test]
    fn in_a_checkout_the_path_is_relative() {
        let (_folder, root) = checkout();
        let dir = root.join("functions/warm");
        run(&args("warm", &dir, None)).unwrap();
        assert_eq!(dependency(&dir)["path"].as_str(), Some("../../guest-sdk"));
        assert!(dir.join("../../guest-sdk/Cargo.toml").is_file());
    }

    #[test]
    fn elsewhere_the_named_sdk_is_absolute() {
        let (_folder, root) = checkout();
        let elsewhere = tempfile::tempdir().unwrap();
        let dir = elsewhere.path().join("warm");
        run(&args("warm", &dir, Some(root.join(SDK)))).unwrap();
        assert_eq!(dependency(&dir)["path"].as_str(), root.join(SDK).to_str());
        let error = run(&args("cold", &elsewhere.path().join("cold"), Some(root.clone()))).unwrap_err().to_string();
        assert!(error.contains("is not the SDK"), "{error}");
        assert!(!elsewhere.path().join("cold").exists(), "a refused folder is removed");
    }

    #[test]
    fn an_sdk_of_another_name_beside_the_new_folder_is_found_by_its_name() {
        let (_folder, root) = checkout();
        fs::rename(root.join(SDK), root.join("sdk-0.1")).unwrap();
        for dir in ["warm", "functions/warm"] {
            let dir = root.join(dir);
            run(&args("warm", &dir, Some(root.join("sdk-0.1")))).unwrap();
            let path = dependency(&dir)["path"].as_str().unwrap().to_owned();
            assert!(path.starts_with("..") && is_sdk(&dir.join(&path)), "{path}");
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let (_folder, root) = checkout();
        fs::create_dir(root.join("warm")).unwrap();
        fs::write(root.join("warm/notes"), "mine").unwrap();
        let error = run(&args("warm", &root.join("warm"), None)).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        run(&args("warm", &root.join("other"), None)).unwrap();
        assert!(run(&args("warm", &root.join("other"), None)).is_err());
    }

    #[test]
    fn names_are_valid_for_cargo_and_boards() {
        for good in ["a", "door-alarm", "x9", "core", "fn"] {
            assert_eq!(name(good), Ok(good.to_owned()));
        }
        for bad in ["", "9x", "-a", "Door", "a_b", "a/b", "ä", &"a".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
