use serde_json::Value;

use super::baseline::Baselines;
use super::network::{EMBEDDING, Network, TOKENS};
use super::quantised::Quantised;
use super::transformer::{self, Place, Target};
use super::*;
use crate::error::Status;

const COMMITTED: &[u8] = include_bytes!("../../tests/data/validation/baselines.safetensors");

fn plan(bits: &[Bits], groups: &[usize]) -> Plan {
    Plan {
        bits: bits.to_vec(),
        groups: groups.to_vec(),
        activations: vec![Activations::F32, Activations::Int8, Activations::Sign],
        backends: backends(1).unwrap(),
    }
}

#[test]
fn every_level_of_the_processor_is_a_backend() {
    let names: Vec<String> = backends(1).unwrap().iter().map(backend_name).collect();
    assert_eq!(names[0], "cpu/scalar");
    assert_eq!(names.last(), Some(&format!("cpu/{}", Isa::best())));
}

#[test]
fn widths_pass_and_what_is_named_is_told_apart() {
    let baselines = Baselines::parse(COMMITTED).unwrap();
    let report = run(
        &plan(&[Bits::Four, Bits::One], &[0, 32]),
        &baselines,
        None,
        &mut |_, _, _| {},
    )
    .unwrap();
    assert_eq!(report.counts().1, 0, "{:#}", report.to_json());
    let levels = report.backends.len();
    // Four dense layers, attention, a layer; two widths; two groups; two kinds of inputs, and signs
    // for dense layers at one bit.
    assert_eq!(report.outcomes.len(), levels * (6 * 2 * 2 * 2 + 4 * 2));
    for o in report
        .outcomes
        .iter()
        .filter(|o| o.scenario.ends_with("512, Gaussian"))
    {
        // The best uniform levels for a row have an error of 10.4 to 10.8%, above the 10% expected
        // of the width.
        let named = o.bits == Bits::Four && o.group == 32;
        assert_eq!(o.within_named(), named, "{o:?}");
        assert!(
            o.relative_error < o.tolerance && o.tolerance < 1.4 * o.expected,
            "{o:?}"
        );
    }
    for c in &report.checks {
        assert!(c.passed(), "{c:?}");
    }
}

/// Multiplies by weights other than the ones reported, as a kernel with one wrong weight would.
#[test]
fn a_wrong_weight_is_seen() {
    let plan = plan(&[Bits::Eight], &[32]);
    let network = Network::one_layer();
    let rt = plan.backends.last().unwrap();
    let exempt = [EMBEDDING, "lm_head.weight"];
    let mut form = Quantised::new(rt, &network, &exempt, Bits::Eight, 32).unwrap();
    let ids: Vec<u32> = (0..TOKENS as u32).collect();
    let taps = transformer::floats(rt, &network, &ids).unwrap();
    let targets = [Target {
        scenario: "layer".into(),
        place: Place::Layer(0),
        baseline: &taps.layers[0],
    }];
    let all = |form: &Quantised| transformer::outcomes(&plan, form, &ids, &targets).unwrap();
    assert!(all(&form).iter().all(report::Outcome::passed));
    let name = "model.layers.0.mlp.down_proj.weight";
    let w = &mut form.dequantised.matrices.get_mut(name).unwrap().values[777];
    *w += 0.02;
    for o in all(&form) {
        assert!(!o.kernel_passed() && o.quantisation_passed(), "{o:?}");
    }
    // With codes that are worse than necessary, the other question fails.
    for codes in form.codes.values_mut() {
        codes.bytes.iter_mut().step_by(7).for_each(|b| *b ^= 0x20);
    }
    let worse = Quantised::of(&network, &network, form.codes).unwrap();
    for o in all(&worse) {
        assert!(o.kernel_passed() && !o.quantisation_passed(), "{o:?}");
    }
}

#[test]
fn damage_is_named() {
    let refused = |bytes: &[u8]| {
        let e = Baselines::parse(bytes).err().expect("it is damaged");
        assert_eq!(e.status(), Status::Format, "{e}");
        e.message().to_owned()
    };
    let mut flipped = COMMITTED.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(refused(&flipped).starts_with("damaged: the sha256"));
    assert!(refused(&COMMITTED[..COMMITTED.len() - 4]).starts_with("damaged"));
    assert!(refused(&COMMITTED[..100]).contains("longer than the file"));
    assert!(refused(b"").contains("fewer than 8 bytes"));
    assert!(refused(b"# A readme that is none").contains("longer than the file"));
    assert!(refused(b"\x02\0\0\0\0\0\0\0{}").contains("no metadata"));
    assert!(refused(b"\x02\0\0\0\0\0\0\0[}").contains("not JSON"));
    let whole = Baselines::parse(COMMITTED).unwrap();
    assert!(whole.get("dense_32x64", [16, 32]).is_ok());
    let e = whole.get("dense_32x64", [16, 33]).unwrap_err();
    assert!(e.message().contains("[16, 32], expected [16, 33]"), "{e}");
    assert!(
        whole
            .get("nothing", [1, 1])
            .unwrap_err()
            .message()
            .contains("there is no nothing")
    );
}

#[test]
fn a_result_as_programs_read_it() {
    let baselines = Baselines::parse(COMMITTED).unwrap();
    let mut plan = plan(&[Bits::Eight], &[32]);
    plan.backends.truncate(1);
    let report = run(&plan, &baselines, None, &mut |_, _, _| {})
        .unwrap()
        .to_json();
    let documented = include_str!("../../docs/validation.md");
    let said = |value: &Value| {
        for key in value.as_object().unwrap().keys() {
            assert!(
                documented.contains(&format!("`{key}`")),
                "docs/validation.md does not say what {key} is"
            );
        }
    };
    for part in [
        &report,
        &report["results"][0],
        &report["baselines"][0],
        &report["distributions"][0],
        &report["widths"][0],
    ] {
        said(part);
    }
    assert_eq!(
        report["results"][0]["baseline"].as_array().unwrap().len(),
        8
    );
}
