//! Shares as bars, and a density as the area behind them.

use super::{Axis, Marks, SIZE, across, down, escaped, figure, frame, legend, put};

/// Bars of a given width at places of the x axis, over an area.
pub struct Bars<'a> {
    pub title: &'a str,
    pub x: Axis<'a>,
    pub y: Axis<'a>,
    /// What the area and the bars are.
    pub names: [&'a str; 2],
    /// Places and heights of steps that touch: their width is the distance of the places.
    pub area: Vec<(f64, f64)>,
    /// Places, heights, and what each says under the pointer.
    pub bars: Vec<(f64, f64, String)>,
    /// The width of a bar in units of the x axis.
    pub width: f64,
}

/// The bars as SVG, their legend behind it as HTML.
pub fn bars(b: &Bars<'_>) -> String {
    let mut svg = String::new();
    frame(&mut svg, b.title, &b.x, &b.y);
    let ground = down(b.y.place(b.y.range.0));
    for (x, height, title) in &b.bars {
        let (from, to) = (
            across(b.x.place(x - b.width / 2.0)),
            across(b.x.place(x + b.width / 2.0)),
        );
        let top = down(b.y.place(height.min(b.y.range.1)));
        put(
            &mut svg,
            format_args!(
                "<rect class=\"f0 bar\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                (to - from).max(0.6),
                ground - top,
                escaped(title)
            ),
        );
    }
    if let [(first, _), (second, _), ..] = b.area[..] {
        let half = (second - first) / 2.0;
        let mut path = format!("M{:.1},{ground:.1}", across(b.x.place(first - half)));
        for (x, height) in &b.area {
            let top = down(b.y.place(height.min(b.y.range.1)));
            let (from, to) = (across(b.x.place(x - half)), across(b.x.place(x + half)));
            path.push_str(&format!(" L{from:.1},{top:.1} L{to:.1},{top:.1}"));
        }
        let end = across(b.x.place(b.area[b.area.len() - 1].0 + half)).min(SIZE.0);
        put(
            &mut svg,
            format_args!("<path class=\"area a1\" d=\"{path} L{end:.1},{ground:.1}Z\"/>"),
        );
    }
    svg.push_str("</svg>");
    let names = [(b.names[0], 1, Marks::Line), (b.names[1], 0, Marks::Dots)];
    figure(&svg, &legend(names.into_iter()))
}
