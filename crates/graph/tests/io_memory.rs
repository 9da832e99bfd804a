//! Malicious safetensors headers do not make the reader exceed its memory bound: twice the file plus 64 MiB.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use metal_candle_graph::io::{Checkpoint, SafetensorsFile, read_json_object};

/// The system's allocator, with counters of the bytes in use and their peak.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` with the caller's own arguments; the counters touch no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(used, Ordering::Relaxed);
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `attack` and checks the peak relative to the memory in use before.
fn bounded<T>(name: &str, file_size: usize, attack: impl FnOnce() -> T) -> T {
    let before = USED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let start = Instant::now();
    let outcome = attack();
    let (taken, peak) = (start.elapsed(), PEAK.load(Ordering::Relaxed) - before);
    assert!(
        peak <= 2 * file_size + (64 << 20),
        "{name}: {peak} bytes for a file of {file_size}"
    );
    // Generous: unoptimised builds on a busy machine.
    assert!(taken < Duration::from_secs(20), "{name}: {taken:?}");
    outcome
}

/// As many copies of `entry`'s results as fit in `limit` bytes, between `open` and `close`.
fn filled(open: &str, close: &str, limit: usize, entry: impl Fn(usize) -> String) -> String {
    let mut text = open.to_owned();
    for i in 0.. {
        let next = entry(i);
        if text.len() + next.len() + close.len() > limit {
            break;
        }
        text.push_str(&next);
    }
    text.pop();
    text + close
}

/// A single test, since the counters are per process.
#[test]
fn peak_memory_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let cap = 16 << 20;
    let tiny = |i| format!(r#""{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#);
    let headers = [
        ("many empty tensors", filled("{", "}", cap, tiny)),
        (
            "a long shape",
            filled(r#"{"a":{"dtype":"U8","shape":["#, "]}}", cap, |_| "1,".to_owned()),
        ),
        (
            "much metadata",
            filled(r#"{"__metadata__":{"#, "}}", cap, |i| format!(r#""{i:x}":"","#)),
        ),
        (
            "an ignored field",
            filled(r#"{"a":{"x":["#, "]}}", cap, |_| "0,".to_owned()),
        ),
        ("one long name", filled("{\"", "\":0}", cap, |_| "aaaaaaaa".to_owned())),
    ];
    for (name, header) in headers {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(&path, &bytes).unwrap();
        let opened = bounded(name, bytes.len(), || {
            SafetensorsFile::open(&path).map(|f| f.names().len())
        });
        assert_eq!(opened.is_ok(), name == "many empty tensors", "{name}");
    }

    let count = 8 << 20;
    let header = format!(
        r#"{{"a":{{"dtype":"F16","shape":[{count}],"data_offsets":[0,{}]}}}}"#,
        2 * count
    );
    let bytes = [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &vec![0; 2 * count],
    ]
    .concat();
    std::fs::write(&path, &bytes).unwrap();
    let open = SafetensorsFile::open(&path).unwrap();
    let load = || open.load_as("a", DType::F32, &Device::Cpu).unwrap();
    assert_eq!(bounded("loading as f32", bytes.len(), load).elem_count(), count);
    std::fs::remove_file(&path).unwrap();

    let index = folder.path().join("model.safetensors.index.json");
    let text = filled(r#"{"weight_map":{"#, "}}", 10 << 20, |i| {
        format!(r#""{i:x}":"a.safetensors","#)
    });
    std::fs::write(&index, &text).unwrap();
    assert!(bounded("an index", text.len(), || Checkpoint::open(folder.path())).is_err());

    let config = folder.path().join("config.json");
    let text = filled(r#"{"a":["#, "]}", 1 << 20, |_| "{},".to_owned());
    std::fs::write(&config, &text).unwrap();
    bounded("settings", text.len(), || read_json_object(&config)).unwrap();
}
