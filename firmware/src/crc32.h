#ifndef TTE_CRC32_H
#define TTE_CRC32_H

#include <stdint.h>

/* CRC-32 as in zlib, Ethernet and PNG: polynomial 0x04C11DB7 reflected, from and to all ones. Of "123456789" it is 0xCBF43926.
 * `crc` is the CRC of the bytes before these: 0 at the start. */
uint32_t crc32_add(uint32_t crc, const void *bytes, uint32_t count);

#endif
