//! What the writer leaves: the same matrix, readable by NumPy, whole at every moment.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use apl_ffi::error::Status;
use apl_ffi::formats::{FloatValues, FloatsView, MatrixRef, MatrixView, open, save_manifest};
use apl_ffi::quant::{Bits, Codes, Packing, Per, ScaleValues, Shape, packed_row_bytes};
use half::{bf16, f16};

use super::{bits_of, floats, floats_of, folder, skipped};

const NAME: &str = "model.layers.0.mlp/down_proj.weight";

/// Numbers that look random and are the same in every run.
fn bytes(n: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 24) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn dequantized(codes: &Codes<'_>) -> Vec<f32> {
    let cols = codes.shape.cols;
    let mut out = vec![0.0; codes.shape.rows * cols];
    for (row, out) in out.chunks_mut(cols.max(1)).enumerate() {
        codes.dequantize_row(row, out);
    }
    out
}

#[test]
fn codes_come_back_exactly() {
    let path = folder("codes_come_back_exactly").join("w.json");
    for (rows, cols, group) in [(3, 70, 32), (1, 1, 0), (5, 33, 7)] {
        let shape = Shape::new(rows, cols, group);
        for bits in Bits::ALL {
            for (packing, row_bytes) in [
                (Packing::Msb, packed_row_bytes(cols, bits)),
                (Packing::Bytes, cols),
            ] {
                let mut stored = bytes(rows * row_bytes, 7);
                if packing == Packing::Bytes {
                    stored.iter_mut().for_each(|c| *c &= bits.max_code());
                }
                for (per, n) in [
                    (Per::Tensor, 1),
                    (Per::Row, rows),
                    (Per::Group, rows * shape.groups),
                ] {
                    let wide: Vec<f32> =
                        bytes(n, 11).iter().map(|&b| f32::from(b) * 0.37).collect();
                    let half: Vec<f16> = wide.iter().map(|&s| f16::from_f32(s)).collect();
                    let zero: Vec<i32> = bytes(n, 13)
                        .iter()
                        .map(|&b| i32::from(b & bits.max_code()))
                        .collect();
                    for scales in [ScaleValues::F32(&wide), ScaleValues::F16(&half)] {
                        let zero_points = (bits != Bits::One).then_some((&zero[..], per));
                        let codes = Codes {
                            shape,
                            bits,
                            packing,
                            bytes: &stored,
                            scales,
                            scale_per: per,
                            zero_points,
                        };
                        save_manifest(&path, NAME, &MatrixRef::Codes(codes)).unwrap();
                        let file = open(&path, true).unwrap();
                        let matrix = file.matrix(NAME).unwrap();
                        let MatrixView::Codes(view) = &matrix else {
                            panic!("codes became floats");
                        };
                        let found = view.as_codes();
                        assert_eq!((found.shape, found.bits), (shape, bits));
                        assert_eq!(
                            matches!(found.scales, ScaleValues::F16(_)),
                            matches!(scales, ScaleValues::F16(_))
                        );
                        assert_eq!(bits_of(&dequantized(&found)), bits_of(&dequantized(&codes)));
                    }
                }
            }
        }
    }
}

#[test]
fn floats_come_back_exactly() {
    let path = folder("floats_come_back_exactly").join("w.json");
    let wide: Vec<f32> = (0..21).map(|i| (i as f32 - 9.7) / 3.0).collect();
    let all = [
        FloatValues::F32((&wide).into()),
        FloatValues::F16(wide.iter().map(|&v| f16::from_f32(v)).collect()),
        FloatValues::BF16(wide.iter().map(|&v| bf16::from_f32(v)).collect()),
    ];
    for values in all {
        let view = FloatsView {
            rows: 3,
            cols: 7,
            values,
        };
        let expected = view.to_f32().unwrap().into_owned();
        let is_half = matches!(view.values, FloatValues::F16(_));
        save_manifest(&path, "w", &MatrixRef::Floats(view.clone())).unwrap();
        let file = open(&path, false).unwrap();
        let matrix = file.matrix("w").unwrap();
        assert_eq!(floats(&matrix), (3, 7, expected));
        let MatrixView::Floats(found) = matrix else {
            panic!("floats became codes");
        };
        assert_eq!(matches!(found.values, FloatValues::F16(_)), is_half);
    }
}

#[test]
fn empty_matrices_come_back_empty() {
    let path = folder("empty_matrices_come_back_empty").join("w.json");
    for (rows, cols, group) in [(0, 0, 0), (0, 8, 4), (5, 0, 0), (5, 0, 4)] {
        let codes = Codes {
            shape: Shape::new(rows, cols, group),
            bits: Bits::Four,
            packing: Packing::Msb,
            bytes: &[],
            scales: ScaleValues::F32(&[]),
            scale_per: Per::Group,
            zero_points: None,
        };
        save_manifest(&path, "w", &MatrixRef::Codes(codes)).unwrap();
        let file = open(&path, true).unwrap();
        assert_eq!(floats_of(&file, "w"), (rows, cols, vec![]));
    }
}

fn four_bits<'a>(stored: &'a [u8], scale: &'a [f32; 1]) -> MatrixRef<'a> {
    MatrixRef::Codes(Codes {
        shape: Shape::new(3, 70, 32),
        bits: Bits::Four,
        packing: Packing::Msb,
        bytes: stored,
        scales: ScaleValues::F32(scale),
        scale_per: Per::Tensor,
        zero_points: None,
    })
}

#[test]
fn a_mapped_file_is_used_in_place() {
    let path = folder("a_mapped_file_is_used_in_place").join("w.json");
    save_manifest(&path, NAME, &four_bits(&bytes(105, 3), &[0.5])).unwrap();
    let file = open(&path, true).unwrap();
    let [first, second] = [file.matrix(NAME).unwrap(), file.matrix(NAME).unwrap()];
    let (MatrixView::Codes(a), MatrixView::Codes(b)) = (&first, &second) else {
        panic!("codes became floats");
    };
    let ScaleValues::F32(scales) = a.as_codes().scales else {
        panic!("the scales are not float32");
    };
    let address = a.as_codes().bytes.as_ptr();
    assert_eq!(address, b.as_codes().bytes.as_ptr());
    assert_eq!(
        (address as usize % 64, scales.as_ptr() as usize % 64),
        (0, 0)
    );
}

#[test]
fn names_of_every_kind() {
    let path = folder("names_of_every_kind").join("w.json");
    let stored = bytes(105, 1);
    for name in [
        "../w", "/w", "a\\b", "⍴ W", " ", "w.npy", "w_q4", "\u{fffd}",
    ] {
        save_manifest(&path, name, &four_bits(&stored, &[1.0])).unwrap();
        floats_of(&open(&path, true).unwrap(), name);
    }
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Nothing is left of what cannot be put in place.
#[test]
fn a_folder_in_the_place_of_a_manifest() {
    let outer = folder("a_folder_in_the_place_of_a_manifest");
    let path = outer.join("w.json");
    std::fs::create_dir_all(&path).unwrap();
    let values = FloatValues::F32(vec![1.0].into());
    let view = FloatsView {
        rows: 1,
        cols: 1,
        values,
    };
    let e = save_manifest(&path, NAME, &MatrixRef::Floats(view)).unwrap_err();
    assert_eq!(e.status(), Status::Io);
    assert!(
        e.message().ends_with("w.json is a folder, expected a file"),
        "{e}"
    );
    assert_eq!(outer.read_dir().unwrap().count(), 1);
}

#[test]
fn saving_replaces_and_cleans_up() {
    let folder = folder("saving_replaces_and_cleans_up");
    let path = folder.join("w.json");
    let others = [
        "w-0123456789ab.txt",
        "w-2-0123456789ab.npz",
        "w-012345.npz",
        "v-0123456789ab.npz",
    ];
    let left_over = [".w.npz.tmp", ".w.json.tmp", "w-0123456789ab.npz"];
    for name in others.iter().chain(&left_over) {
        std::fs::write(folder.join(name), "something").unwrap();
    }
    save_manifest(&path, "old", &four_bits(&bytes(105, 1), &[1.0])).unwrap();
    save_manifest(&path, "new", &four_bits(&bytes(105, 2), &[1.0])).unwrap();
    let file = open(&path, true).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["new"]);
    let mut names = names_in(&folder);
    assert!(others.iter().all(|n| names.remove(*n)), "{names:?}");
    assert!(names.remove("w.json"));
    let npz = names.pop_first().unwrap();
    assert!(npz.starts_with("w-") && npz.ends_with(".npz") && npz.len() == 2 + 12 + 4);
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn the_same_matrix_gives_the_same_file() {
    let folder = folder("the_same_matrix_gives_the_same_file");
    let save = || {
        save_manifest(
            &folder.join("w.json"),
            "w",
            &four_bits(&bytes(105, 1), &[1.0]),
        )
        .unwrap();
        names_in(&folder)
    };
    assert_eq!(save(), save());
}

#[test]
fn what_cannot_be_saved() {
    let folder = folder("what_cannot_be_saved");
    let stored = bytes(105, 1);
    let matrix = four_bits(&stored, &[1.0]);
    let refused = |path: &str, name: &str| {
        let e = save_manifest(&folder.join(path), name, &matrix).unwrap_err();
        (e.status(), e.message().to_owned())
    };
    for path in ["w.gguf", "w", ".json"] {
        let (status, text) = refused(path, "w");
        assert_eq!(status, Status::Range);
        assert!(
            text.ends_with("expected a name that ends in .json"),
            "{text}"
        );
    }
    for name in ["", "a\nb", &"x".repeat(1025)] {
        assert_eq!(refused("w.json", name).0, Status::Range);
    }
    let (status, text) = refused("none/w.json", "w");
    assert_eq!(status, Status::Io);
    assert!(text.contains("none cannot be opened: "), "{text}");
    assert!(names_in(&folder).is_empty());
}

#[test]
fn savers_at_once_leave_one_whole_file() {
    let folder = folder("savers_at_once_leave_one_whole_file");
    let path = folder.join("w.json");
    save_manifest(&path, "w", &four_bits(&bytes(105, 99), &[1.0])).unwrap();
    let saving = AtomicUsize::new(4);
    std::thread::scope(|s| {
        s.spawn(|| {
            while saving.load(Ordering::Relaxed) > 0 {
                floats_of(&open(&path, true).unwrap(), "w");
            }
        });
        for seed in 0..4 {
            let (path, saving) = (&path, &saving);
            s.spawn(move || {
                for i in 0..5 {
                    let stored = bytes(105, seed * 5 + i);
                    save_manifest(path, "w", &four_bits(&stored, &[1.0])).unwrap();
                }
                saving.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    floats_of(&open(&path, true).unwrap(), "w");
    assert_eq!(names_in(&folder).len(), 2);
}

/// The variable that turns a run of this test into the process that is to be killed.
const VICTIM: &str = "APL_FFI_TEST_SAVE_UNTIL_KILLED";

#[test]
fn a_kill_leaves_the_old_or_the_new() {
    if let Some(path) = std::env::var_os(VICTIM) {
        let mut seed = 0;
        loop {
            seed += 1;
            save_manifest(Path::new(&path), "w", &four_bits(&bytes(105, seed), &[1.0])).unwrap();
        }
    }
    let folder = folder("a_kill_leaves_the_old_or_the_new");
    let path = folder.join("w.json");
    for round in 0..12u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "saving::a_kill_leaves_the_old_or_the_new"])
            .env(VICTIM, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !path.exists() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(1700 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let (rows, cols, _) = floats_of(&open(&path, true).unwrap(), "w");
        assert_eq!((rows, cols), (3, 70));
    }
    // What the kills left over, the next run takes away.
    save_manifest(&path, "w", &four_bits(&bytes(105, 0), &[1.0])).unwrap();
    assert_eq!(names_in(&folder).len(), 2, "{:?}", names_in(&folder));
}

#[test]
fn numpy_reads_what_is_saved() {
    let folder = folder("numpy_reads_what_is_saved");
    let path = folder.join("w.json");
    let stored = bytes(105, 5);
    save_manifest(&path, NAME, &four_bits(&stored, &[0.5])).unwrap();
    let program = "
import json, sys, numpy
manifest = json.load(open(sys.argv[1] + '/w.json'))
arrays = numpy.load(sys.argv[1] + '/' + manifest['model']['source_npz'])
weight = manifest['weights'][sys.argv[2]]
print(arrays[weight['packed']].tolist(), arrays[weight['scales']].tolist(), arrays[sys.argv[2] + '_shape'].tolist())
";
    let run = Command::new("python3")
        .args(["-c", program])
        .arg(&folder)
        .arg(NAME)
        .output();
    let run = match run {
        Ok(run) if !String::from_utf8_lossy(&run.stderr).contains("ModuleNotFoundError") => run,
        _ => {
            skipped("no Python with NumPy to read the npz");
            return;
        }
    };
    let rows: Vec<&[u8]> = stored.chunks(35).collect();
    let expected = format!("{rows:?} {:?} [3, 70]\n", [[0.5; 3]; 3]);
    assert_eq!(String::from_utf8_lossy(&run.stdout), expected, "{run:?}");
}

#[test]
#[ignore = "writes 4.4 GB and hashes them"]
fn more_than_4_gb() {
    let path = folder("more_than_4_gb").join("w.json");
    let (rows, cols) = (1 << 16, 67_200);
    let mut stored = vec![0; rows * cols];
    stored[rows * cols - 1] = 200;
    let codes = Codes {
        shape: Shape::new(rows, cols, 0),
        bits: Bits::Eight,
        packing: Packing::Msb,
        bytes: &stored,
        scales: ScaleValues::F32(&[0.5]),
        scale_per: Per::Tensor,
        zero_points: None,
    };
    save_manifest(&path, "w", &MatrixRef::Codes(codes)).unwrap();
    let file = open(&path, true).unwrap();
    let matrix = file.matrix("w").unwrap();
    let MatrixView::Codes(view) = &matrix else {
        panic!("codes became floats");
    };
    let mut row = vec![0.0; cols];
    view.as_codes().dequantize_row(rows - 1, &mut row);
    assert_eq!((row[0], row[cols - 1]), (-64.0, 36.0));
}
