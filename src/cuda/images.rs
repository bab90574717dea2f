//! The embedded compiled kernels, written by `make kernels`: a cubin for each architecture, and one
//! PTX.

/// A compute capability, major and minor.
pub(super) type Capability = (i32, i32);

/// The lowest compute capability that an image supports.
pub(super) const LEAST: Capability = (7, 5);

/// An image that a module is loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// `sm_90`, or `compute_75` for the PTX.
    pub name: &'static str,
    /// The capability that it was compiled for.
    pub capability: Capability,
    /// Whether the driver has to compile it.
    pub ptx: bool,
    /// The image compressed with xz. Uncompressed, the images are more than six times the size;
    /// compressed with zlib, 1.7 times.
    packed: &'static [u8],
}

macro_rules! cubin {
    ($major:literal, $minor:literal) => {
        Image {
            name: concat!("sm_", $major, $minor),
            capability: ($major, $minor),
            ptx: false,
            packed: include_bytes!(concat!(
                "../../kernels/images/sm_",
                $major,
                $minor,
                ".cubin.xz"
            )),
        }
    };
}

/// In ascending order.
const CUBINS: [Image; 7] = [
    cubin!(7, 5),
    cubin!(8, 0),
    cubin!(8, 6),
    cubin!(8, 9),
    cubin!(9, 0),
    cubin!(10, 0),
    cubin!(12, 0),
];

/// For capabilities between and after those.
pub(super) const PTX: Image = Image {
    name: "compute_75",
    capability: LEAST,
    ptx: true,
    packed: include_bytes!("../../kernels/images/fallback.ptx.xz"),
};

impl Image {
    /// The image for a device: the cubin of exactly its capability, else the highest one below it
    /// with the same major number, else the PTX. A cubin runs on higher minor numbers of its major
    /// number, never on another major number.
    pub fn for_device(device: Capability) -> Image {
        CUBINS
            .into_iter()
            .rfind(|i| i.capability.0 == device.0 && i.capability.1 <= device.1)
            .unwrap_or(PTX)
    }

    /// The bytes that the driver loads; PTX ends with the required NUL.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        lzma_rs::xz_decompress(&mut &*self.packed, &mut bytes)
            .expect("an embedded image, which a test inflates");
        if self.ptx {
            bytes.push(0);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernels::KERNELS;
    use super::*;
    use serde_json::Value;
    use sha2::{Digest, Sha256};
    use std::fs;
    use std::path::Path;

    fn hex(bytes: &[u8]) -> String {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_image_for_a_capability() {
        for (device, name) in [
            ((7, 5), "sm_75"),
            ((8, 0), "sm_80"),
            ((8, 6), "sm_86"),
            ((8, 7), "sm_86"),
            ((8, 9), "sm_89"),
            ((9, 0), "sm_90"),
            ((10, 0), "sm_100"),
            ((10, 3), "sm_100"),
            ((11, 0), "compute_75"),
            ((12, 0), "sm_120"),
            ((12, 1), "sm_120"),
            ((13, 0), "compute_75"),
        ] {
            assert_eq!(Image::for_device(device).name, name, "{device:?}");
        }
    }

    /// The index, the images, the sources and the names are consistent.
    #[test]
    fn the_images_are_of_these_sources() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let index = fs::read_to_string(folder.join("images/index.json")).unwrap();
        let index: Value = serde_json::from_str(&index).unwrap();

        let mut sources = Vec::new();
        for name in index["sources"].as_array().unwrap() {
            sources.extend(fs::read(folder.join(name.as_str().unwrap())).unwrap());
        }
        assert_eq!(index["sources_sha256"], hex(&sources), "make kernels");
        assert_eq!(
            index["kernels"],
            serde_json::json!(&KERNELS[..]),
            "KERNELS in kernels.rs"
        );

        let listed = index["images"].as_array().unwrap();
        let embedded: Vec<Image> = CUBINS.into_iter().chain([PTX]).collect();
        assert_eq!(listed.len(), embedded.len());
        for (listed, image) in listed.iter().zip(embedded) {
            let (major, minor) = image.capability;
            assert_eq!(listed["arch"], 10 * major + minor);
            assert_eq!(listed["kind"] == "ptx", image.ptx);
            let mut bytes = image.bytes();
            if image.ptx {
                assert_eq!(bytes.pop(), Some(0));
            }
            assert_eq!(listed["sha256"], hex(&bytes), "{}", image.name);
            assert_eq!(listed["bytes"], bytes.len());
        }
    }
}
