//! The one macro that declares a map record: plain integers only, no padding, size stated and checked.
//!
//! Owns: the proof that a record may be read from raw bytes. Refuses: any field whose size sum does not equal the
//! size of the struct, so padding cannot slip in.

/// Marks a type that may stand in a record: every bit pattern is valid and there is no padding.
///
/// Implemented for the fixed-width integers, arrays of them, and records made by `record!`.
pub(crate) trait Plain: Copy + 'static {}

impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Declares a `#[repr(C)]` record of exactly the stated size, made of [`Plain`] fields without padding.
macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident, $size:literal bytes {
        $($(#[$field_meta:meta])* pub $field:ident : $ty:ty,)+
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $ty,)+ }

        impl $crate::pod::Plain for $name {}

        const _: () = {
            const fn plain<T: $crate::pod::Plain>() {}
            $(plain::<$ty>();)+
            assert!(core::mem::size_of::<$name>() == $size, "record size differs from the stated one");
            assert!(0 $(+ core::mem::size_of::<$ty>())+ == $size, "record has implicit padding");
        };

        impl $name {
            /// A record of all zeroes.
            pub const ZERO: Self = Self { $($field: <$ty as $crate::pod::Zero>::ZERO,)+ };
            /// A record from its bytes; `None` if there are too few or too many.
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                if bytes.len() != $size {
                    return None;
                }
                let mut rest = bytes;
                Some(Self { $($field: <$ty as $crate::pod::FromBytes>::take(&mut rest)?,)+ })
            }
            /// Field names with offsets and sizes in bytes, for the golden layout table.
            pub const LAYOUT: &'static [(&'static str, usize, usize)] = &[
                $((stringify!($field), core::mem::offset_of!($name, $field), core::mem::size_of::<$ty>()),)+
            ];
        }

        impl $crate::pod::Zero for $name { const ZERO: Self = Self::ZERO; }

        impl $crate::pod::Fields for $name {
            const ZERO: Self = Self::ZERO;

            fn each_field(&self, visit: &mut dyn FnMut(&'static str, &dyn core::fmt::Debug)) {
                $(visit(stringify!($field), &self.$field);)+
            }
        }

        impl $crate::pod::FromBytes for $name {
            fn take(rest: &mut &[u8]) -> Option<Self> {
                let (own, others) = rest.split_at_checked($size)?;
                *rest = others;
                Self::from_bytes(own)
            }
        }

        // SAFETY: (need) aya moves map values as raw bytes and asks for this marker. (soundness) the assertions above
        // prove that every field is plain and that there is no padding, so every bit pattern is a valid value and
        // every byte is initialised.
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "aya's `Pod` is an unsafe marker trait; the assertions above are its proof")]
        unsafe impl aya::Pod for $name {}
    };
}
pub(crate) use record;

/// The all-zero value of a plain type, as a constant.
pub(crate) trait Zero {
    /// All bits zero.
    const ZERO: Self;
}
impl Zero for u8 {
    const ZERO: Self = 0;
}
impl Zero for u16 {
    const ZERO: Self = 0;
}
impl Zero for u32 {
    const ZERO: Self = 0;
}
impl Zero for u64 {
    const ZERO: Self = 0;
}
impl<T: Zero, const N: usize> Zero for [T; N] {
    const ZERO: Self = [T::ZERO; N];
}

/// Reads a plain type from the front of a byte slice, in host order.
pub(crate) trait FromBytes: Sized {
    /// Takes the value off the front.
    fn take(rest: &mut &[u8]) -> Option<Self>;
}
macro_rules! integer_from_bytes {
    ($($ty:ty),+) => {$(
        impl FromBytes for $ty {
            fn take(rest: &mut &[u8]) -> Option<Self> {
                let (own, others) = rest.split_first_chunk()?;
                *rest = others;
                Some(Self::from_ne_bytes(*own))
            }
        }
    )+};
}
integer_from_bytes!(u8, u16, u32, u64);
impl<T: FromBytes + Zero + Copy, const N: usize> FromBytes for [T; N] {
    fn take(rest: &mut &[u8]) -> Option<Self> {
        let mut values = [T::ZERO; N];
        for value in &mut values {
            *value = T::take(rest)?;
        }
        Some(values)
    }
}

/// A record whose fields can be looked at by name, for dumps.
pub trait Fields: Sized {
    /// All bits zero.
    const ZERO: Self;
    /// Calls with every field's name and value, in the order of the layout.
    fn each_field(&self, visit: &mut dyn FnMut(&'static str, &dyn core::fmt::Debug));
}
