//! `sedge check`: everything that is wrong with a configuration, or what it would run.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{ConfigArgs, EXIT_CONFIG, print_problems};
use crate::config::problem::{Location, Misfit, Severity};
use crate::config::{Config, Problem, Problems};
use crate::deploy::{self, Compiler, Host, InstallError, Source};
use crate::manifest::{Manifest, StateScope};

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let (config, mut problems) = Config::inspect(&args.config.path());
    let (functions, more) = config.functions.load_present();
    problems.extend(more);
    for (dir, manifest) in &functions {
        let takes_code = config.functions.native_code;
        let Source { path: component, is_code } = Source::find(dir, manifest, Host::here(), takes_code);
        if !is_code && Host::here().has_compiler && !component.is_file() {
            let misfit = Misfit::new(format!("there is no {}", component.display()));
            let at = Location::whole(dir.join(crate::manifest::FILE_NAME));
            problems.push(Problem::error(at, "component", misfit.mend(format!("sedge build {}", dir.display()))));
            continue;
        }
        // In the same child and with the same limits as when it is run.
        if let Err(error) = deploy::install(dir, manifest.clone(), &Compiler, takes_code) {
            let at = Location::whole(dir.join(crate::manifest::FILE_NAME));
            problems.push(match error {
                InstallError::NotGranted { source, .. } => {
                    Problem::error(at, format!("allow.{}", source.key), Misfit::new(source.to_string()))
                }
                InstallError::NoCompiler { what, .. } => Problem::error(at, "component", Misfit::new(what)),
                InstallError::Folder { source, .. } => {
                    let misfit = Misfit::new(source.to_string());
                    Problem::error(at, "component", misfit.mend(format!("sedge compile {}", dir.display())))
                }
                error => {
                    let misfit = Misfit::new(format!("{:#}", anyhow::Error::from(error)));
                    Problem::error(at, "component", misfit.mend(format!("sedge build {}", dir.display())))
                }
            });
        }
    }
    // With a key to trust, functions can be pushed.
    if functions.is_empty() && config.deploy.keys.is_empty() && !problems.has_errors() {
        let misfit = Misfit::new("no function, so nothing would run").mend("list the folders of functions");
        let problem = Problem::error(Location::whole(args.config.path()), "functions.paths", misfit);
        problems.push(Problem { severity: Severity::Warning, ..problem });
    }
    let keys = &config.deploy.keys;
    if !Host::here().has_compiler && !keys.is_empty() && !keys.values().any(|key| key.native_code) {
        let misfit = Misfit::new("this build has no compiler, and no key may send native code: nothing pushed can run");
        let misfit = misfit.mend("set native_code = true for a key, if who has it may run anything in a worker");
        let problem = Problem::error(Location::whole(args.config.path()), "deploy.keys", misfit);
        problems.push(Problem { severity: Severity::Warning, ..problem });
    }

    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", as_json(&config, &functions, &problems))?;
    } else {
        print_problems(&problems);
        if !problems.has_errors() {
            summary(&mut out, &config, &functions)?;
        }
    }
    Ok(if problems.has_errors() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::SUCCESS })
}

fn summary(out: &mut impl Write, config: &Config, functions: &[(PathBuf, Manifest)]) -> std::io::Result<()> {
    let node = &config.node;
    write!(out, "node       {}, topics under {}/{}/", node.name, node.base_topic, node.name)?;
    match node.groups.is_empty() {
        true => writeln!(out)?,
        false => writeln!(out, ", groups {}", node.groups.join(", "))?,
    }
    let shared = config.mqtt.share_group.as_ref().map_or_else(String::new, |group| format!(", shared by {group}"));
    writeln!(out, "broker     {}{shared}", config.mqtt.url)?;
    match &config.upstream {
        Some(upstream) => writeln!(out, "upstream   {}", upstream.url)?,
        None => writeln!(out, "upstream   none: alerts stay on the local broker, data is dropped and counted")?,
    }
    writeln!(out, "data       {}", node.data_dir.display())?;
    match config.http.listen {
        Some(listen) => writeln!(out, "metrics    http://{listen}/metrics")?,
        None => writeln!(out, "metrics    off")?,
    }
    for (dir, manifest) in functions {
        writeln!(out, "\nfunction   {} {}, from {}", manifest.name, manifest.version, dir.display())?;
        for filter in &manifest.subscribe {
            writeln!(out, "  hears    {filter}")?;
        }
        if let Some(every) = manifest.every {
            writeln!(out, "  ticks    every {every:?}")?;
        }
        for filter in &manifest.allow.publish {
            writeln!(out, "  may say  {filter}")?;
        }
        match manifest.state {
            StateScope::None => {}
            StateScope::Topic => {
                writeln!(out, "  state    of each topic, at most {} bytes", manifest.limits.state_bytes)?
            }
            StateScope::Function => {
                writeln!(out, "  state    of all topics, at most {} bytes", manifest.limits.state_bytes)?
            }
        }
        let limits = &manifest.limits;
        writeln!(
            out,
            "  limits   {} fuel, {} ms, {} bytes of memory, {} outputs, {} bytes of output",
            limits.fuel, limits.timeout_ms, limits.memory_bytes, limits.outputs, limits.output_bytes
        )?;
    }
    Ok(())
}

fn as_json(config: &Config, functions: &[(PathBuf, Manifest)], problems: &Problems) -> Value {
    json!({
        "ok": !problems.has_errors(),
        "problems": problems,
        "node": config.node.name,
        "groups": config.node.groups,
        "broker": config.mqtt.url,
        "upstream": config.upstream.as_ref().map(|upstream| &upstream.url),
        "data_dir": config.node.data_dir,
        "metrics": config.http.listen,
        "functions": functions.iter().map(|(dir, manifest)| json!({ "dir": dir, "manifest": manifest })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn configured() -> (Config, Vec<(PathBuf, Manifest)>) {
        let text = "[node]\nname = \"board-7\"\ngroups = [\"plant\"]\n[upstream]\nurl = \"http://a/in\"\n[http]\nlisten = \"off\"";
        let (config, problems) = Config::parse(text, Path::new("sedge.toml"));
        assert_eq!(problems, Problems::default());
        let text =
            "name = \"warm\"\nversion = \"1\"\nsubscribe = [\"s/+/t\"]\nstate = \"topic\"\nallow.publish = [\"d/#\"]";
        let manifest = Manifest::from_toml(text, Path::new("function.toml"), None).unwrap();
        (config, vec![("functions/warm".into(), manifest)])
    }

    #[test]
    fn the_summary_says_what_would_run() {
        let (config, functions) = configured();
        let mut out = Vec::new();
        summary(&mut out, &config, &functions).unwrap();
        let expected = "\
node       board-7, topics under sedge/board-7/, groups plant
broker     mqtt://localhost:1883
upstream   http://a/in
data       /var/lib/sedge
metrics    off

function   warm 1, from functions/warm
  hears    s/+/t
  may say  d/#
  state    of each topic, at most 65536 bytes
  limits   10000000 fuel, 100 ms, 4194304 bytes of memory, 64 outputs, 65536 bytes of output
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn json_holds_the_manifests_and_the_problems() {
        let (config, functions) = configured();
        let (_, problems) = Config::parse("[mqtt]\nurl = 1", Path::new("sedge.toml"));
        let json = as_json(&config, &functions, &problems);
        assert_eq!(json["ok"], false);
        assert_eq!(json["problems"][0]["line"], 2);
        assert_eq!(json["problems"][0]["key"], "mqtt.url");
        assert_eq!(json["functions"][0]["manifest"]["limits"]["timeout_ms"], 100);
    }
}
