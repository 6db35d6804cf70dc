// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_WIRE_FORMAT_H
#define UB_WIRE_FORMAT_H

#include <cstdint>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief How many bytes a packet takes on the wire.
 *
 * On UB links a packet is a row of blocks, each of whole flits: every block ends with its check,
 * every block but the first begins with a header of its own; the first begins with the link
 * packet header, which counts as part of the packet's header stack (UB Base Specification 2.0,
 * section 4: flits of 20 B, blocks of at most 32 flits, block header 2 B, check 4 B). With no
 * flit size the packet is its header stack and its payload, as on other networks.
 *
 * Forward error correction is not in here: its code rate lowers the rate of the link.
 */
struct UbWireFormat
{
    uint32_t flitBytes{0};        //!< bytes of a flit, 0: packets are not cut into flits
    uint32_t blockFlits{32};      //!< most flits of a block
    uint32_t blockHeaderBytes{2}; //!< header of every block but the first
    uint32_t blockCheckBytes{4};  //!< check at the end of every block

    /**
     * @param [in] headerBytes The packet's header stack, link packet header included.
     * @param [in] payloadBytes The packet's payload.
     * @return Bytes on the wire.
     */
    uint32_t WireBytes(uint32_t headerBytes, uint32_t payloadBytes) const
    {
        const uint32_t bytes = headerBytes + payloadBytes;
        if (flitBytes == 0)
        {
            return bytes;
        }
        const uint32_t blockBytes = flitBytes * blockFlits;
        const uint32_t inFirst = blockBytes - blockCheckBytes;
        if (bytes <= inFirst)
        {
            return RoundUp(bytes + blockCheckBytes);
        }
        const uint32_t overhead = blockHeaderBytes + blockCheckBytes;
        const uint32_t inOther = blockBytes - overhead;
        const uint32_t whole = (bytes - inFirst - 1) / inOther; // full blocks after the first
        const uint32_t last = bytes - inFirst - whole * inOther;
        return (whole + 1) * blockBytes + RoundUp(last + overhead);
    }

  private:
    /**
     * @param [in] bytes Bytes.
     * @return The least multiple of a flit that holds them.
     */
    uint32_t RoundUp(uint32_t bytes) const
    {
        return (bytes + flitBytes - 1) / flitBytes * flitBytes;
    }
};

} // namespace ns3

#endif // UB_WIRE_FORMAT_H
