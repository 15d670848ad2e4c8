//! Disk that fails, tears, lies and loses its power: a VFS of SQLite in front of that of the system.
//!
//! It is the default of this process and passes everything through, but for files in the folder of a [`Disk`]. There it
//! asks the disk's plan about each call, and keeps apart what was synced and what was only written. A sync costs nothing.
#![expect(unsafe_code, reason = "a VFS is a table of C functions")]

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use rusqlite::ffi;

/// Write unit of a disk: a torn write keeps some of them.
const SECTOR: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Open,
    Delete,
    Access,
    Read,
    Write,
    Truncate,
    Sync,
    Size,
    Lock,
    ShmMap,
    ShmLock,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Fails with this code of SQLite, without an effect.
    Failed(c_int),
    /// A write that fails half way. Other calls fail.
    Torn(c_int),
    /// A read returns another content, a sync does nothing. Other calls are done.
    Lie,
    /// This call and all later ones fail; see [`Disk::after_power_cut`].
    PowerCut,
}

/// Decides what becomes of a call, by its number from 1, its kind and the name of the file.
type Plan = Box<dyn FnMut(u64, Call, &str) -> Outcome + Send>;

/// Disk of a folder, until dropped.
pub(super) struct Disk {
    folder: PathBuf,
    shared: Arc<Shared>,
}

struct Shared(Mutex<State>);

struct State {
    calls: u64,
    plan: Plan,
    is_off: bool,
    files: BTreeMap<String, Image>,
}

/// File as the disk has it.
#[derive(Default)]
struct Image {
    synced: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

/// Pseudo random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

static DISKS: Mutex<BTreeMap<PathBuf, Arc<Shared>>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk {
    pub(super) fn of(folder: &Path) -> Self {
        LazyLock::force(&SYSTEM);
        let folder = folder.canonicalize().unwrap();
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // The index of the log is memory.
        let files = names.filter(|name| !name.ends_with("-shm")).map(|name| {
            let synced = fs::read(folder.join(&name)).unwrap();
            (name, Image { synced, unsynced: Vec::new() })
        });
        let files = files.collect();
        let state = State { calls: 0, plan: Box::new(|_, _, _| Outcome::Done), is_off: false, files };
        let shared = Arc::new(Shared(Mutex::new(state)));
        lock(&DISKS).insert(folder.clone(), Arc::clone(&shared));
        Self { folder, shared }
    }

    /// Counts calls from 1 again and decides them by this plan.
    pub(super) fn plan(&self, plan: impl FnMut(u64, Call, &str) -> Outcome + Send + 'static) {
        let mut state = lock(&self.shared.0);
        state.calls = 0;
        state.plan = Box::new(plan);
    }

    pub(super) fn works_again(&self) {
        lock(&self.shared.0).plan = Box::new(|_, _, _| Outcome::Done);
    }

    pub(super) fn calls(&self) -> u64 {
        lock(&self.shared.0).calls
    }

    pub(super) fn is_off(&self) -> bool {
        lock(&self.shared.0).is_off
    }

    /// Writes the files as a power cut leaves them into another folder: what was synced, and of the rest nothing, all, or
    /// any part.
    pub(super) fn after_power_cut(&self, random: &mut Random, to: &Path) {
        let style = random.below(4);
        for (name, image) in &lock(&self.shared.0).files {
            let mut content = image.synced.clone();
            let mut survives = |style_needed: u64| style == 1 || style == style_needed && random.below(2) == 0;
            for change in &image.unsynced {
                match change {
                    Change::Truncate(length) if style == 1 || survives(2) => content.truncate(*length),
                    Change::Truncate(_) => {}
                    Change::Write(at, bytes) if style == 3 => {
                        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                            if survives(3) {
                                put(&mut content, at + n * SECTOR, sector);
                            }
                        }
                    }
                    Change::Write(at, bytes) if survives(2) => put(&mut content, *at, bytes),
                    Change::Write(..) => {}
                }
            }
            fs::write(to.join(name), content).unwrap();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        lock(&DISKS).remove(&self.folder);
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    content.resize(content.len().max(end), 0);
    content[at..end].copy_from_slice(bytes);
}

impl Shared {
    /// Asks the plan. `change`: what a call that is done changes.
    fn outcome(&self, call: Call, name: &str, change: impl FnOnce(&mut State)) -> Outcome {
        let mut state = lock(&self.0);
        if state.is_off {
            return Outcome::Failed(ffi::SQLITE_IOERR);
        }
        state.calls += 1;
        let number = state.calls;
        let outcome = (state.plan)(number, call, name);
        match outcome {
            Outcome::Done => change(&mut state),
            Outcome::Lie if call != Call::Sync => change(&mut state),
            Outcome::PowerCut => {
                // The write under way is one of those that may be on the disk.
                change(&mut state);
                state.is_off = true;
                return Outcome::Failed(ffi::SQLITE_IOERR);
            }
            Outcome::Lie | Outcome::Failed(_) | Outcome::Torn(_) => {}
        }
        outcome
    }
}

impl State {
    fn image(&mut self, name: &str) -> &mut Image {
        self.files.entry(name.to_owned()).or_default()
    }

    fn sync(&mut self, name: &str) {
        let Image { synced, unsynced } = self.image(name);
        for change in unsynced.drain(..) {
            match change {
                Change::Write(at, bytes) => put(synced, at, &bytes),
                Change::Truncate(length) => synced.truncate(length),
            }
        }
    }
}

/// The VFS of the system, behind the one of this file. Registers the latter.
static SYSTEM: LazyLock<System> = LazyLock::new(|| {
    // SAFETY: SQLite returns its default VFS, which lives as long as the process.
    let system = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    assert!(!system.is_null());
    // SAFETY: not null, and nobody writes to it but SQLite while it registers another.
    let mut vfs = unsafe { *system };
    let own = size_of::<OpenFile>() as c_int;
    vfs.iVersion = 1;
    vfs.szOsFile += own;
    vfs.zName = c"faulty".as_ptr();
    vfs.pNext = ptr::null_mut();
    vfs.xOpen = Some(open);
    vfs.xDelete = Some(delete);
    vfs.xAccess = Some(access);
    // SAFETY: the table is leaked, so it lives as long as the process. Its other functions are those of the system's VFS,
    // which use nothing of the table beyond its name and `pAppData`.
    let code = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 1) };
    assert_eq!(code, ffi::SQLITE_OK);
    System(system)
});

struct System(*mut ffi::sqlite3_vfs);

// SAFETY: the table is constant and SQLite uses it from all threads.
unsafe impl Send for System {}
// SAFETY: as above.
unsafe impl Sync for System {}

/// Open file in memory of SQLite, followed by that of the system's VFS.
#[repr(C, align(8))]
struct OpenFile {
    methods: *const ffi::sqlite3_io_methods,
    inner: *mut Inner,
}

struct Inner {
    shared: Arc<Shared>,
    name: String,
    real: *mut ffi::sqlite3_file,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // Version 2: with shared memory, without memory maps.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(size),
    xLock: Some(take_lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// Disk and file name of a path, if it is in the folder of a disk.
fn find(path: *const c_char) -> Option<(Arc<Shared>, String)> {
    if path.is_null() {
        return None;
    }
    // SAFETY: SQLite passes text that ends with a zero.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let shared = Arc::clone(lock(&DISKS).get(path.parent()?)?);
    Some((shared, path.file_name()?.to_str()?.to_owned()))
}

extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let system = SYSTEM.0;
    // SAFETY: the system's VFS has this function.
    let open = unsafe { (*system).xOpen }.unwrap();
    let Some((shared, name)) = find(path) else {
        // SAFETY: the memory is larger than the system's VFS needs.
        return unsafe { open(system, path, file, flags, out) };
    };
    // SAFETY: `file` points to `szOsFile` bytes. Null here means that SQLite does not close the file.
    unsafe { (*file).pMethods = ptr::null() };
    let content = fs::read(Path::new(OsStr::from_bytes(
        // SAFETY: checked by `find`.
        unsafe { CStr::from_ptr(path) }.to_bytes(),
    )));
    let outcome = shared.outcome(Call::Open, &name, |state| {
        let image = state.image(&name);
        if image.unsynced.is_empty() {
            image.synced = content.unwrap_or_default();
        }
    });
    match outcome {
        Outcome::Done | Outcome::Lie => {}
        _ => return ffi::SQLITE_CANTOPEN,
    }
    // SAFETY: the system's part follows, with the alignment of `OpenFile`.
    let real = unsafe { file.cast::<u8>().add(size_of::<OpenFile>()) }.cast::<ffi::sqlite3_file>();
    // SAFETY: `path` stays valid while the file is open, as SQLite promises.
    let code = unsafe { open(system, path, real, flags, out) };
    if code == ffi::SQLITE_OK {
        let inner = Box::into_raw(Box::new(Inner { shared, name, real }));
        // SAFETY: `file` points to `szOsFile` bytes, which begin with an `OpenFile`.
        unsafe { file.cast::<OpenFile>().write(OpenFile { methods: &raw const METHODS, inner }) };
    }
    code
}

extern "C" fn delete(_: *mut ffi::sqlite3_vfs, path: *const c_char, sync: c_int) -> c_int {
    let system = SYSTEM.0;
    if let Some((shared, name)) = find(path) {
        match shared.outcome(Call::Delete, &name, |state| drop(state.files.remove(&name))) {
            Outcome::Done | Outcome::Lie => {}
            Outcome::Failed(_) | Outcome::Torn(_) | Outcome::PowerCut => return ffi::SQLITE_IOERR_DELETE,
        }
    }
    // SAFETY: the arguments are SQLite's.
    unsafe { (*system).xDelete.unwrap()(system, path, sync) }
}

extern "C" fn access(_: *mut ffi::sqlite3_vfs, path: *const c_char, flags: c_int, out: *mut c_int) -> c_int {
    let system = SYSTEM.0;
    if let Some((shared, name)) = find(path) {
        match shared.outcome(Call::Access, &name, |_| ()) {
            Outcome::Done | Outcome::Lie => {}
            Outcome::Failed(_) | Outcome::Torn(_) | Outcome::PowerCut => return ffi::SQLITE_IOERR_ACCESS,
        }
    }
    // SAFETY: the arguments are SQLite's.
    unsafe { (*system).xAccess.unwrap()(system, path, flags, out) }
}

fn inner<'a>(file: *mut ffi::sqlite3_file) -> &'a Inner {
    // SAFETY: SQLite calls methods only of files that `open` has written, until they are closed.
    unsafe { &*(*file.cast::<OpenFile>()).inner }
}

/// Calls a method of the system's VFS on its part of a file.
macro_rules! real {
    ($inner:expr, $method:ident $(, $argument:expr)*) => {
        // SAFETY: the system's VFS opened the file and has this method; the other arguments are SQLite's.
        unsafe { (*(*$inner.real).pMethods).$method.unwrap()($inner.real $(, $argument)*) }
    };
}

/// Returns from the method if the call fails, with the plan's code or this one for the end of the power.
macro_rules! attempt {
    ($inner:expr, $call:expr) => {
        match $inner.shared.outcome($call, &$inner.name, |_| ()) {
            Outcome::Done | Outcome::Lie => {}
            Outcome::Failed(code) | Outcome::Torn(code) => return code,
            Outcome::PowerCut => return ffi::SQLITE_IOERR,
        }
    };
}

extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let code = real!(inner(file), xClose);
    // SAFETY: made by `Box::into_raw` in `open`; SQLite closes a file once.
    drop(unsafe { Box::from_raw((*file.cast::<OpenFile>()).inner) });
    code
}

extern "C" fn read(file: *mut ffi::sqlite3_file, into: *mut c_void, length: c_int, at: i64) -> c_int {
    let inner = inner(file);
    let outcome = inner.shared.outcome(Call::Read, &inner.name, |_| ());
    if let Outcome::Failed(code) | Outcome::Torn(code) = outcome {
        return code;
    }
    let code = real!(inner, xRead, into, length, at);
    if outcome == Outcome::Lie && code == ffi::SQLITE_OK {
        // SAFETY: SQLite passes `length` bytes, which were just filled.
        let bytes = unsafe { std::slice::from_raw_parts_mut(into.cast::<u8>(), length as usize) };
        bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    }
    code
}

extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, length: c_int, at: i64) -> c_int {
    let inner = inner(file);
    // SAFETY: SQLite passes `length` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), length as usize) };
    let change = |state: &mut State, bytes: &[u8]| {
        state.image(&inner.name).unsynced.push(Change::Write(at as usize, bytes.to_vec()));
    };
    match inner.shared.outcome(Call::Write, &inner.name, |state| change(state, bytes)) {
        Outcome::Done | Outcome::Lie => real!(inner, xWrite, from, length, at),
        Outcome::Torn(code) => {
            // A sector is written as a whole or not at all.
            let torn = bytes.len() / 2 / SECTOR * SECTOR;
            change(&mut lock(&inner.shared.0), &bytes[..torn]);
            real!(inner, xWrite, from, torn as c_int, at);
            code
        }
        Outcome::Failed(code) => code,
        Outcome::PowerCut => ffi::SQLITE_IOERR_WRITE,
    }
}

extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: i64) -> c_int {
    let inner = inner(file);
    let change = |state: &mut State| state.image(&inner.name).unsynced.push(Change::Truncate(length as usize));
    match inner.shared.outcome(Call::Truncate, &inner.name, change) {
        Outcome::Done | Outcome::Lie => real!(inner, xTruncate, length),
        Outcome::Failed(code) | Outcome::Torn(code) => code,
        Outcome::PowerCut => ffi::SQLITE_IOERR_TRUNCATE,
    }
}

extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    let inner = inner(file);
    match inner.shared.outcome(Call::Sync, &inner.name, |state| state.sync(&inner.name)) {
        Outcome::Done | Outcome::Lie => ffi::SQLITE_OK,
        Outcome::Failed(code) | Outcome::Torn(code) => code,
        Outcome::PowerCut => ffi::SQLITE_IOERR_FSYNC,
    }
}

extern "C" fn size(file: *mut ffi::sqlite3_file, out: *mut i64) -> c_int {
    let inner = inner(file);
    attempt!(inner, Call::Size);
    real!(inner, xFileSize, out)
}

extern "C" fn take_lock(file: *mut ffi::sqlite3_file, kind: c_int) -> c_int {
    let inner = inner(file);
    attempt!(inner, Call::Lock);
    real!(inner, xLock, kind)
}

extern "C" fn unlock(file: *mut ffi::sqlite3_file, kind: c_int) -> c_int {
    real!(inner(file), xUnlock, kind)
}

extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    real!(inner(file), xCheckReservedLock, out)
}

extern "C" fn control(file: *mut ffi::sqlite3_file, operation: c_int, argument: *mut c_void) -> c_int {
    real!(inner(file), xFileControl, operation, argument)
}

extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    real!(inner(file), xSectorSize)
}

extern "C" fn characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    real!(inner(file), xDeviceCharacteristics)
}

extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    n: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    let inner = inner(file);
    attempt!(inner, Call::ShmMap);
    real!(inner, xShmMap, n, size, extend, out)
}

extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    let inner = inner(file);
    // Releasing a lock never fails.
    if flags & ffi::SQLITE_SHM_LOCK != 0 {
        attempt!(inner, Call::ShmLock);
    }
    real!(inner, xShmLock, offset, n, flags)
}

extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    real!(inner(file), xShmBarrier);
}

extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    real!(inner(file), xShmUnmap, delete)
}
