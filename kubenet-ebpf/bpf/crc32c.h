/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * CRC32c, SCTP's checksum, which goes over the whole packet. It is linear: two
 * packets of one length that differ in their first word have checksums that
 * differ by that word's difference times x^(8 * length), modulo the polynomial,
 * whatever else is in them. So no more than the length is needed to change it.
 *
 * Bits are reflected, as everywhere with this checksum: the highest is x^0.
 * Words are those of a little-endian machine.
 */
#ifndef KUBENET_CRC32C_H
#define KUBENET_CRC32C_H

#include "common.h"

#define CRC32C_POLYNOMIAL 0x82f63b78

#define CRC32C_DIGITS 4 /* of a length in base 16 */

/* x^(8 * digit * 16^place). */
static const __u32 crc32c_powers[CRC32C_DIGITS][16] = {
	{
		0x80000000,
		0x00800000,
		0x00008000,
		0x00000080,
		0x82f63b78,
		0xfbc3faf9,
		0x8b277743,
		0x52a0c93f,
		0x6ea2d55c,
		0x1c08b7d6,
		0xf56e0ef4,
		0x34019664,
		0xa66805eb,
		0x7a1f6b24,
		0xe75d06aa,
		0xc94ec098,
	},
	{
		0x80000000,
		0x18b8ea18,
		0x510ac59a,
		0xb2dea967,
		0xb82be955,
		0x36c41f1c,
		0x19b29a35,
		0xc9e90b9e,
		0xb8fdb1e7,
		0xe55ef1f3,
		0x1fe0b5c3,
		0xe0553f1e,
		0x18e4a304,
		0x2b830011,
		0x56993a31,
		0x0246e2e6,
	},
	{
		0x80000000,
		0x88e56f72,
		0x74c360a4,
		0x631bb273,
		0xe4172b16,
		0x71892b1b,
		0x835305c9,
		0x196b1eae,
		0x0d65762a,
		0xafc81338,
		0xb5a50ab7,
		0xf373c3ac,
		0x5f60970f,
		0xd46d3063,
		0x3a5275ea,
		0x02331c01,
	},
	{
		0x80000000,
		0x35d73a62,
		0x28461564,
		0x43eefc9f,
		0xbf455269,
		0x5edcdeb9,
		0x65059450,
		0x4e6f41a4,
		0xe2ea32dc,
		0xf5b95b32,
		0x695a4c87,
		0xf204502c,
		0x9a4f01b6,
		0x941a0916,
		0x4303cb97,
		0x4c3d3d65,
	},
};

/*
 * Nothing branches on a bit, and nothing looks as if it could: the verifier would
 * follow both ways each time. So bits are factors, and the compiler is kept from
 * seeing that they are bits.
 */
static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		__u32 high = a >> 31, low = b & 1;

		asm volatile("" : "+r"(high), "+r"(low));
		product ^= b * high;
		a <<= 1;
		b = b >> 1 ^ CRC32C_POLYNOMIAL * low;
	}
	return product;
}

/*
 * What becomes of a state when `length` zero bytes follow. Not static: the
 * verifier looks at it once, and not again at each call.
 */
__noinline __u32 crc32c_shift(__u32 state, __u32 length)
{
	for (int place = 0; place < CRC32C_DIGITS; place++) {
		__u32 digit = length >> 4 * place & 15;

		if (digit)
			state = crc32c_multiply(crc32c_powers[place][digit],
						state);
	}
	return state;
}

/* Of a few words, one after the other. */
static __always_inline __u32 crc32c_words(const __u32 *words, __u32 count)
{
	__u32 state = ~0;

	for (__u32 i = 0; i < count; i++)
		state = crc32c_shift(state ^ words[i], sizeof(*words));
	return ~state;
}

#endif
