//! The page of `apl-ffi validate`: its figures as plots and tables.

use apl_ffi::matmul::Activations;
use apl_ffi::quant::Bits;
use apl_ffi::validate::{Outcome, Report, named_tolerance};

use super::{codes, sizes};
use crate::plot::page::{page as whole, section, table};
use crate::plot::{Axis, Chart, Marks, Point, Scale, Series, chart, escaped, percent};

/// The page of a report, as HTML that needs nothing else: figures of the best backend as plots, every result in tables.
pub fn page(report: &Report) -> String {
    let best = report.backends.last().map_or("", String::as_str);
    let shown = Shown { report, best };
    let (all, failed) = report.counts();
    let verdict = match failed {
        0 => "<span class=\"good\">all of them passed</span>".to_owned(),
        n => format!("<span class=\"bad\">{n} did not pass</span>"),
    };
    let mut body = format!(
        "<p class=\"soft\">apl_ffi {}, {all} results on {}: {verdict}. Float figures are PyTorch's ({}); what is computed in float64 here \
         differs from them by at most {:.0e}.</p>\n",
        env!("CARGO_PKG_VERSION"),
        escaped(&report.backends.join(", ")),
        escaped(&report.torch),
        report.worst_check(),
    );
    body += &shown.widths();
    body += &shown.layers();
    body += &codes::section_of(report);
    body += &sizes::section_of(report, best);
    body += &shown.kernels();
    body += &shown.everything();
    whole("Is it still the same model?", &body)
}

/// A report, and the backend whose figures are drawn.
struct Shown<'a> {
    report: &'a Report,
    best: &'a str,
}

/// Bits, evenly spaced.
fn bits_axis() -> Axis<'static> {
    Axis {
        label: "bits a code",
        scale: Scale::Log,
        range: (0.85, 9.4),
        ticks: Bits::ALL
            .iter()
            .rev()
            .map(|b| (b.get() as f64, b.get().to_string()))
            .collect(),
    }
}

/// The colour of a width.
pub fn colour(bits: Bits) -> usize {
    match bits {
        Bits::Eight => 0,
        Bits::Four => 2,
        Bits::Two => 3,
        Bits::One => 1,
    }
}

/// How many weights share a scale.
pub fn group(g: usize) -> String {
    match g {
        0 => "a scale a row".into(),
        g => format!("groups of {g}"),
    }
}

impl<'a> Shown<'a> {
    fn outcomes(&self) -> impl Iterator<Item = &'a Outcome> {
        let best = self.best;
        self.report
            .outcomes
            .iter()
            .filter(move |o| o.backend == best)
    }

    /// The names of the scenarios that `wanted` takes, in order.
    fn scenarios(&self, wanted: impl Fn(&str) -> bool) -> Vec<&'a str> {
        let mut names: Vec<&str> = Vec::new();
        for o in self.outcomes().filter(|o| wanted(&o.scenario)) {
            if !names.contains(&o.scenario.as_str()) {
                names.push(&o.scenario);
            }
        }
        names
    }

    fn of_model(&self, scenario: &str) -> bool {
        let model = self.report.model.as_deref();
        model.is_some_and(|m| {
            scenario
                .strip_prefix(m)
                .is_some_and(|rest| rest.starts_with(", "))
        })
    }

    /// Error by width and group.
    fn widths(&self) -> String {
        let synthetic = self.scenarios(|s| !self.of_model(s));
        let plots: Vec<String> = synthetic.iter().map(|s| self.width(s)).collect();
        section(
            "Error by bits and group",
            "The norm of the difference from the float outputs over their norm. Dots: float32 inputs; rings: inputs in int8, which \
             only matter at 8 bits. Broken: what each width is named for, and the least that any quantiser of one weight at a time \
             loses on Gaussian weights (Lloyd&#8211;Max): at 1 and 2 bits the former lies under the latter. Scales for small \
             groups are information beside the code, and may go below it.",
            &plots,
        )
    }

    fn width(&self, scenario: &'a str) -> String {
        let here: Vec<&Outcome> = self.outcomes().filter(|o| o.scenario == scenario).collect();
        let mut groups: Vec<usize> = here.iter().map(|o| o.group).collect();
        groups.sort_unstable();
        groups.dedup();
        let mut series = Vec::new();
        for (i, &g) in groups.iter().enumerate() {
            for (activations, marks, suffix) in [
                (Activations::F32, Marks::Line, ""),
                (Activations::Int8, Marks::Rings, ", int8"),
            ] {
                let points: Vec<Point> = here
                    .iter()
                    .filter(|o| o.group == g && o.activations == activations)
                    .map(|o| Point {
                        x: o.bits.get() as f64,
                        y: o.relative_error,
                        title: format!(
                            "{} bits, {}{suffix}: {:.4}; theory expects {:.4}, at most {:.4} passes",
                            o.bits.get(), group(g), o.relative_error, o.expected, o.tolerance
                        ),
                    })
                    .collect();
                if !points.is_empty() {
                    series.push(Series {
                        name: format!("{}{suffix}", group(g)),
                        colour: [0, 2, 4, 6][i % 4],
                        marks,
                        points,
                    });
                }
            }
        }
        for (name, colour, of) in [
            ("named tolerance", 1, named_tolerance as fn(Bits) -> f64),
            ("Lloyd\u{2013}Max", 7, Bits::lloyd_max),
        ] {
            series.push(Series {
                name: name.into(),
                colour,
                marks: Marks::Dashes,
                points: Bits::ALL
                    .iter()
                    .map(|&b| Point {
                        x: b.get() as f64,
                        y: of(b),
                        title: format!("{name}, {} bits: {}", b.get(), percent(of(b))),
                    })
                    .collect(),
            });
        }
        plotted(scenario, bits_axis(), "relative error", series)
    }

    /// Error behind each layer of a model, by width.
    fn layers(&self) -> String {
        let Some(model) = self.report.model.as_deref() else {
            return String::new();
        };
        let prefix = format!("{model}, layer ");
        let scenarios = self.scenarios(|s| s.starts_with(&prefix));
        let mut groups: Vec<usize> = self.outcomes().map(|o| o.group).collect();
        groups.sort_unstable();
        groups.dedup();
        let mut plots = Vec::new();
        for g in groups {
            let mut series = Vec::new();
            for bits in Bits::ALL.into_iter().rev() {
                let at = |i: usize, s: &str| {
                    let mut all = self.outcomes();
                    let o = all.find(|o| {
                        o.scenario == s
                            && o.bits == bits
                            && o.group == g
                            && o.activations == Activations::F32
                    })?;
                    Some(((i + 1) as f64, o))
                };
                let found: Vec<(f64, &Outcome)> = scenarios
                    .iter()
                    .enumerate()
                    .filter_map(|(i, s)| at(i, s))
                    .collect();
                if found.is_empty() {
                    continue;
                }
                let line = |y: fn(&Outcome) -> f64, what: &str| -> Vec<Point> {
                    let point = |(x, o): &(f64, &Outcome)| Point {
                        x: *x,
                        y: y(o),
                        title: format!("layer {x}, {} bits, {what}: {:.4}", bits.get(), y(o)),
                    };
                    found.iter().map(point).collect()
                };
                series.push(Series {
                    name: format!("{} bits", bits.get()),
                    colour: colour(bits),
                    marks: Marks::Line,
                    points: line(|o| o.relative_error, "found"),
                });
                series.push(Series {
                    // One entry of the legend says it for all of them.
                    name: if series.len() > 1 {
                        String::new()
                    } else {
                        "expected".into()
                    },
                    colour: colour(bits),
                    marks: Marks::Dashes,
                    points: line(|o| o.expected, "as much noise as the best scales lose"),
                });
            }
            if series.is_empty() {
                continue;
            }
            let x = Axis {
                label: "layer",
                scale: Scale::Linear,
                range: (0.6, scenarios.len() as f64 + 0.4),
                ticks: ticks(scenarios.len()),
            };
            let title = format!("{model}, {}", group(g));
            plots.push(plotted(
                &title,
                x,
                "relative error of what a layer puts out",
                series,
            ));
        }
        section(
            "Layer by layer",
            "How far the stream of a real model is from that of its float weights behind each layer, with float32 inputs. Broken: the \
             same with random noise in the place of quantisation, as large as the best scales must lose (the test channel of \
             rate-distortion theory): the model's own sensitivity, which no kernel and no search can change.",
            &plots,
        )
    }

    /// Whether the kernels are right, by backend.
    fn kernels(&self) -> String {
        let mut rows = vec![
            [
                "backend",
                "inputs",
                "results",
                "worst error",
                "allowed there",
                "share of what is allowed",
            ]
            .map(String::from)
            .to_vec(),
        ];
        for backend in &self.report.backends {
            for activations in [Activations::F32, Activations::Int8, Activations::Sign] {
                let of = |o: &&Outcome| o.backend == *backend && o.activations == activations;
                let here: Vec<&Outcome> = self.report.outcomes.iter().filter(of).collect();
                let share = |o: &Outcome| o.kernel_error / o.kernel_tolerance;
                let Some(worst) = here.iter().max_by(|a, b| share(a).total_cmp(&share(b))) else {
                    continue;
                };
                rows.push(vec![
                    escaped(backend),
                    activations.name().into(),
                    here.len().to_string(),
                    format!("{:.1e}", worst.kernel_error),
                    format!("{:.1e}", worst.kernel_tolerance),
                    percent(share(worst)),
                ]);
            }
        }
        format!(
            "<h2>Are the kernels right?</h2>\n<p>Against float64 on the weights that the codes stand for and on inputs as the C ABI defines them. \
             What is allowed is what rounding to float32 can add up to.</p>\n{}",
            table(&rows)
        )
    }

    /// Every outcome.
    fn everything(&self) -> String {
        let mut rows = vec![
            [
                "scenario", "bits", "group", "inputs", "backend", "error", "expected", "allowed",
                "named", "kernel", "allowed", "",
            ]
            .map(String::from)
            .to_vec(),
        ];
        for o in &self.report.outcomes {
            rows.push(vec![
                escaped(&o.scenario),
                o.bits.get().to_string(),
                if o.group == 0 {
                    "row".into()
                } else {
                    o.group.to_string()
                },
                o.activations.name().into(),
                escaped(&o.backend),
                format!("{:.4}", o.relative_error),
                format!("{:.4}", o.expected),
                format!("{:.4}", o.tolerance),
                format!(
                    "{}{}",
                    percent(o.named_tolerance),
                    if o.within_named() { "" } else { ", over" }
                ),
                format!("{:.1e}", o.kernel_error),
                format!("{:.1e}", o.kernel_tolerance),
                match o.passed() {
                    true => "<span class=\"good\">passed</span>".into(),
                    false => "<span class=\"bad\">failed</span>".into(),
                },
            ]);
        }
        format!(
            "<details><summary>All {} results</summary>\n{}</details>\n",
            rows.len() - 1,
            table(&rows)
        )
    }
}

/// Labels of layers, at most a dozen.
fn ticks(layers: usize) -> Vec<(f64, String)> {
    let step = layers.div_ceil(12).max(1);
    (1..=layers)
        .step_by(step)
        .map(|i| (i as f64, i.to_string()))
        .collect()
}

/// A chart whose y axis is logarithmic over all it shows.
fn plotted(title: &str, x: Axis<'_>, label: &str, series: Vec<Series>) -> String {
    let values: Vec<f64> = series.iter().flat_map(|s| &s.points).map(|p| p.y).collect();
    chart(&Chart {
        title,
        x,
        y: Axis::log(label, values.into_iter(), percent),
        series,
    })
}
