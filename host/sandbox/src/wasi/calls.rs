//! The functions of WASI preview 1. Addresses and lengths come from the program and are checked against its memory.
//!
//! A call that cannot do what it is asked for returns an error number, with which every standard library can deal. It ends the
//! run only where the reason must be told: at the end of the program, at a limit, and without a permission.

use wasmtime::{Caller, FuncType, Linker, Result, Val, ValType, format_err};

use super::environment::Texts;
use super::{Exit, PREVIEW_1, Program};
use crate::grants;
use crate::host::HostState;

/// Error numbers of preview 1, by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Errno {
    /// Not an open file.
    Badf = 8,
    /// An address outside of the memory.
    Fault = 21,
    Inval = 28,
    Notsup = 58,
    /// A stream has no position.
    Spipe = 70,
    Notcapable = 76,
}

/// Why a call does not succeed: an error for the program, or the end of the run.
enum Refusal {
    Errno(Errno),
    End(wasmtime::Error),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

type Answer = Result<(), Refusal>;

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;

/// Parts of one call to read or write, as in Linux (`IOV_MAX`).
const MAX_PARTS: u32 = 1024;
/// Bytes per write. The rest is written by the next call, so that deadlines are checked between.
const MAX_WRITE_BYTES: usize = 64 << 10;
/// Random bytes per call. They cost no fuel.
const MAX_RANDOM_BYTES: u32 = 65_536;

const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;
const NANOSECONDS_PER_MS: u64 = 1_000_000;

// Rights of a stream.
const FD_READ: u64 = 1 << 1;
const FD_WRITE: u64 = 1 << 6;

/// Functions that exist and do nothing, with their parameters: `i` has 32 bits, `l` has 64. Standard libraries import them
/// for programs that never call them.
const INERT: [(&str, &str); 27] = [
    ("fd_advise", "illi"),
    ("fd_allocate", "ill"),
    ("fd_datasync", "i"),
    ("fd_fdstat_set_flags", "ii"),
    ("fd_fdstat_set_rights", "ill"),
    ("fd_filestat_get", "ii"),
    ("fd_filestat_set_size", "il"),
    ("fd_filestat_set_times", "illi"),
    ("fd_pread", "iiili"),
    ("fd_prestat_dir_name", "iii"),
    ("fd_prestat_get", "ii"),
    ("fd_pwrite", "iiili"),
    ("fd_readdir", "iiili"),
    ("fd_renumber", "ii"),
    ("fd_sync", "i"),
    ("path_create_directory", "iii"),
    ("path_filestat_get", "iiiii"),
    ("path_filestat_set_times", "iiiilli"),
    ("path_link", "iiiiiii"),
    ("path_open", "iiiiillii"),
    ("path_readlink", "iiiiii"),
    ("path_remove_directory", "iii"),
    ("path_rename", "iiiiii"),
    ("path_symlink", "iiiii"),
    ("path_unlink_file", "iii"),
    ("fd_tell", "ii"),
    ("poll_oneoff", "iiii"),
];

/// Functions that work.
#[cfg(feature = "compiler")]
const WORKING: [&str; 14] = [
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_close",
    "fd_fdstat_get",
    "fd_read",
    "fd_seek",
    "fd_write",
    "proc_exit",
    "random_get",
    "sched_yield",
];

/// Whether a program may import this function.
#[cfg(feature = "compiler")]
pub(super) fn is_known(name: &str) -> bool {
    WORKING.contains(&name) || INERT.iter().any(|(inert, _)| *inert == name)
}

/// Defines one import by its name. An unknown one stays undefined.
pub(crate) fn define(linker: &mut Linker<HostState>, name: &str) -> Result<()> {
    match name {
        "args_get" => two(linker, name, |call, list, bytes| call.texts(|program| &program.arguments, list, bytes)),
        "args_sizes_get" => two(linker, name, |call, count, size| call.sizes(|it| &it.arguments, count, size)),
        "environ_get" => two(linker, name, |call, list, bytes| call.texts(|program| &program.environment, list, bytes)),
        "environ_sizes_get" => two(linker, name, |call, count, size| call.sizes(|it| &it.environment, count, size)),
        "clock_res_get" => two(linker, name, clock_resolution),
        "clock_time_get" => clock(linker, name, clock_time),
        "fd_close" => one(linker, name, close),
        "fd_fdstat_get" => two(linker, name, describe),
        "fd_read" => four(linker, name, read),
        "fd_seek" => {
            seeking(linker, name, |call, file, _, _, _| Err(call.open(file).err().unwrap_or(Errno::Spipe).into()))
        }
        "fd_write" => four(linker, name, write),
        "proc_exit" => {
            linker.func_wrap(PREVIEW_1, name, |code: u32| Err::<(), wasmtime::Error>(Exit(code).into())).map(drop)
        }
        "random_get" => two(linker, name, random),
        "sched_yield" => linker.func_wrap(PREVIEW_1, name, || 0_u32).map(drop),
        _ => match INERT.into_iter().find(|(inert, _)| *inert == name) {
            Some((_, parameters)) => define_inert(linker, name, parameters),
            None => Ok(()),
        },
    }
}

/// Defines a function that always fails: for a file that is not open, and for what no stream can do.
fn define_inert(linker: &mut Linker<HostState>, name: &str, parameters: &str) -> Result<()> {
    let parameters = parameters.bytes().map(|kind| if kind == b'l' { ValType::I64 } else { ValType::I32 });
    let function = FuncType::new(linker.engine(), parameters, [ValType::I32]);
    let refusal = if name.starts_with("path_") { Errno::Notcapable } else { Errno::Notsup };
    let has_file = name != "poll_oneoff";
    linker
        .func_new(PREVIEW_1, name, function, move |caller, parameters, results| {
            let is_open = match (parameters.first(), &caller.data().program) {
                (Some(Val::I32(file)), Some(program)) => program.is_open(file.cast_unsigned()),
                _ => false,
            };
            let errno = if has_file && !is_open { Errno::Badf } else { refusal };
            results[0] = Val::I32(errno as i32);
            Ok(())
        })
        .map(drop)
}

/// One call of a program to the host.
struct Call<'a> {
    memory: Memory<'a>,
    program: &'a mut Program,
    host: &'a mut HostState,
}

/// Serves a call by `work`. Returns the error number for the program, or 0.
fn serve(mut caller: Caller<'_, HostState>, work: impl FnOnce(&mut Call<'_>) -> Answer) -> Result<u32> {
    let memory = caller.data().program.as_ref().map(|program| program.memory);
    let memory = memory.ok_or_else(|| format_err!("the program called the host before `_start` was called"))?;
    let (memory, host) = memory.data_and_store_mut(&mut caller);
    let mut program = host.program.take().expect("it was there above");
    let answer = work(&mut Call { memory: Memory(memory), program: &mut program, host });
    host.program = Some(program);
    match answer {
        Ok(()) => Ok(0),
        Err(Refusal::Errno(errno)) => Ok(errno as u32),
        Err(Refusal::End(error)) => Err(error),
    }
}

impl Program {
    fn is_open(&self, file: u32) -> bool {
        self.is_closed.get(file as usize).is_some_and(|is_closed| !is_closed)
    }
}

impl Call<'_> {
    fn open(&self, file: u32) -> Result<(), Errno> {
        if self.program.is_open(file) { Ok(()) } else { Err(Errno::Badf) }
    }

    fn sizes(&mut self, texts: fn(&Program) -> &Texts, count: u32, size: u32) -> Answer {
        let texts = texts(self.program);
        let (starts, bytes) = (texts.starts().len() as u32, texts.bytes().len() as u32);
        self.memory.write(count, &starts.to_le_bytes())?;
        self.memory.write(size, &bytes.to_le_bytes())
    }

    fn texts(&mut self, texts: fn(&Program) -> &Texts, list: u32, at: u32) -> Answer {
        let texts = texts(self.program);
        self.memory.write(at, texts.bytes())?;
        for (start, number) in texts.starts().iter().zip(0_u32..) {
            let place = list.checked_add(4 * number).ok_or(Errno::Fault)?;
            self.memory.write(place, &at.wrapping_add(*start).to_le_bytes())?;
        }
        Ok(())
    }
}

fn read(call: &mut Call<'_>, file: u32, parts: u32, count: u32, result: u32) -> Answer {
    call.open(file)?;
    if file != STDIN {
        return Err(Errno::Badf.into());
    }
    let mut total = 0_u32;
    for number in 0..at_most_max(count)? {
        let (at, len) = call.memory.part(parts, number)?;
        let read = call.program.stdin.read(call.memory.at(at, len as usize)?);
        total += read as u32;
        if read < len as usize {
            break;
        }
    }
    call.memory.write(result, &total.to_le_bytes())
}

fn write(call: &mut Call<'_>, file: u32, parts: u32, count: u32, result: u32) -> Answer {
    call.open(file)?;
    let mut room = MAX_WRITE_BYTES;
    for number in 0..at_most_max(count)? {
        let (at, len) = call.memory.part(parts, number)?;
        let bytes = call.memory.at(at, room.min(len as usize))?;
        match file {
            STDOUT => call.program.stdout.write(bytes).map_err(|exceeded| Refusal::End(exceeded.into()))?,
            STDERR => call.program.stderr.write(bytes, call.host),
            _ => return Err(Errno::Badf.into()),
        }
        room -= bytes.len();
        if room == 0 {
            break;
        }
    }
    call.memory.write(result, &((MAX_WRITE_BYTES - room) as u32).to_le_bytes())
}

fn at_most_max(parts: u32) -> Result<u32, Errno> {
    if parts > MAX_PARTS { Err(Errno::Inval) } else { Ok(parts) }
}

fn close(call: &mut Call<'_>, file: u32) -> Answer {
    call.open(file)?;
    call.program.is_closed[file as usize] = true;
    Ok(())
}

/// ```text
/// fdstat   +0 kind: 0 unknown, as of a pipe, +2 flags, +8 rights, +16 rights of what is opened below
/// ```
fn describe(call: &mut Call<'_>, file: u32, at: u32) -> Answer {
    call.open(file)?;
    let rights = if file == STDIN { FD_READ } else { FD_WRITE };
    let mut description = [0; 24];
    description[8..16].copy_from_slice(&rights.to_le_bytes());
    call.memory.write(at, &description)
}

/// The time of the message, or with the permission the board's clocks.
fn clock_time(call: &mut Call<'_>, clock: u32, _precision: u64, at: u32) -> Answer {
    let time = match (clock, call.program.grants.clock) {
        (REALTIME, true) => call.host.draws.clock(grants::unix_ns),
        (MONOTONIC, true) => call.host.draws.clock(grants::monotonic_ns),
        (REALTIME | MONOTONIC, false) => call.program.received_at_ms.saturating_mul(NANOSECONDS_PER_MS),
        _ => return Err(Errno::Notsup.into()),
    };
    call.memory.write(at, &time.to_le_bytes())
}

fn clock_resolution(call: &mut Call<'_>, clock: u32, at: u32) -> Answer {
    let resolution = match (clock, call.program.grants.clock) {
        (REALTIME | MONOTONIC, true) => 1,
        (REALTIME | MONOTONIC, false) => NANOSECONDS_PER_MS,
        _ => return Err(Errno::Notsup.into()),
    };
    call.memory.write(at, &resolution.to_le_bytes())
}

/// Fills with random bytes. Without the permission the run ends: programs take an error for a broken machine.
fn random(call: &mut Call<'_>, at: u32, len: u32) -> Answer {
    if !call.program.grants.random {
        return Err(Refusal::End(grants::random_denied("program")));
    }
    if len > MAX_RANDOM_BYTES {
        return Err(Errno::Inval.into());
    }
    call.host.draws.fill(call.memory.at(at, len as usize)?).map_err(Refusal::End)
}

/// The memory of a program.
struct Memory<'a>(&'a mut [u8]);

impl Memory<'_> {
    fn at(&mut self, at: u32, len: usize) -> Result<&mut [u8], Errno> {
        self.0.get_mut(at as usize..).and_then(|memory| memory.get_mut(..len)).ok_or(Errno::Fault)
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Answer {
        self.at(at, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    /// Address and length of one part of a list: four bytes each.
    fn part(&mut self, list: u32, number: u32) -> Result<(u32, u32), Errno> {
        const BYTES: u32 = 8;
        let at = list.checked_add(number * BYTES).ok_or(Errno::Fault)?;
        let (part, _) = self.at(at, BYTES as usize)?.as_chunks::<4>();
        Ok((u32::from_le_bytes(part[0]), u32::from_le_bytes(part[1])))
    }
}

/// Makes a function that defines imports with these parameters, as in `imports.rs`.
macro_rules! definer {
    ($define:ident($($param:ident: $type:ty),*)) => {
        fn $define(
            linker: &mut Linker<HostState>,
            name: &str,
            run: fn(&mut Call<'_>, $($type),*) -> Answer,
        ) -> Result<()> {
            let import = move |caller: Caller<'_, HostState>, $($param: $type),*| {
                serve(caller, |call| run(call, $($param),*))
            };
            linker.func_wrap(PREVIEW_1, name, import).map(drop)
        }
    };
}

definer!(one(a: u32));
definer!(two(a: u32, b: u32));
definer!(four(a: u32, b: u32, c: u32, d: u32));
definer!(clock(id: u32, precision: u64, at: u32));
definer!(seeking(file: u32, offset: u64, whence: u32, at: u32));
