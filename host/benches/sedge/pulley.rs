//! The invocation on Wasmtime's interpreter, Pulley, over the same on native code: what 32-bit ARM boards pay, for which
//! there is no compiler. Measured on this machine, with its 64-bit variant.

use std::io;

use crate::Size;
use crate::report::{Goal, Report};

const KEY: &str = "pulley_ratio";

#[cfg(not(feature = "pulley"))]
pub fn measure(report: &mut Report, _: &Size) -> io::Result<()> {
    report.add_missing(KEY, Goal::None, "run the bench as `make bench` does, with `--features pulley`");
    Ok(())
}

#[cfg(feature = "pulley")]
pub fn measure(report: &mut Report, size: &Size) -> io::Result<()> {
    use sedge::sandbox::{Class, Sandbox, compile, yardstick};

    use crate::harness::guest::guest;
    use crate::invoke::{LIMITS, microseconds};

    eprintln!("interpreter");
    let wasm = std::fs::read(guest("last").join("last.wasm"))?;
    let settings = || vec![("max".to_owned(), "80".to_owned())].into();
    let code = compile::component(&wasm, Class::Small).map_err(io::Error::other)?;
    let mut sandbox = Sandbox::new();
    let native = sandbox.load(&code, LIMITS, settings()).map_err(io::Error::other)?;
    let pulley = yardstick::interpreted(&wasm, LIMITS, settings()).map_err(io::Error::other)?;
    let (mut pulley_us, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..size.rounds * 4 {
        let (native, pulley) = (microseconds(&native), microseconds(&pulley));
        pulley_us.push(pulley);
        ratios.push(pulley / native);
    }
    report.add_median(KEY, ratios, Goal::None, "an invocation interpreted, over native code");
    report.add_median("pulley_us", pulley_us, Goal::None, "the invocation of invoke_fresh_us, interpreted");
    Ok(())
}
