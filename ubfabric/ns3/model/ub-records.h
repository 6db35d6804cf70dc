// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_RECORDS_H
#define UB_RECORDS_H

#include <cstdint>

namespace ns3
{

/// What a flow does with the memory of its other end, and which engine of src does it.
enum UbOperation : uint8_t
{
    UB_WRITE = 0,   //!< the bytes go from src to dst
    UB_READ = 1,    //!< src asks, the bytes come from dst to src
    UB_BY_SDMA = 2, //!< a bit of its own: an SDMA engine issues it instead of a vector core
};

/**
 * @ingroup ub-fabric
 * @brief A flow as it crosses between Python and C++: one row of a structured array.
 *
 * The caller owns the array and keeps it until the chunk is complete; the engine works in place,
 * so results need no copy. One cache line.
 */
struct UbFlowRecord
{
    uint32_t src;          //!< in: source endpoint, a node number
    uint32_t dst;          //!< in: destination endpoint, a node number
    uint32_t messages;     //!< in: number of messages, at least 1
    uint32_t messageBytes; //!< in: bytes of each message, at least 1
    uint32_t sendTask;     //!< in: task of the chunk that sends it, UB_NONE for open loop
    uint32_t waitTask;     //!< in: task of the chunk that waits for it, UB_NONE for nobody
    int64_t startPs;       //!< in for open loop, out: handed to the endpoint
    int64_t firstBytePs;   //!< out: first byte at the destination's port
    int64_t finishPs;      //!< out: last byte seen by the receiver
    int64_t queueingPs;    //!< out: time its packets waited in ports, summed
    uint32_t packetsLeft;  //!< in: 0; counts down while packets are under way
    uint8_t network;       //!< in: 0 ub, 1 rdma, 2 vpc
    uint8_t lane;          //!< in: virtual lane
    uint8_t hops;          //!< out: links crossed, 0 for a copy within the endpoint
    uint8_t operation;     //!< in: see UbOperation
};

static_assert(sizeof(UbFlowRecord) == 64, "the layout is shared with NumPy");

/**
 * @ingroup ub-fabric
 * @brief Where the time of a flow's packets went, summed over the packets that carry its bytes.
 *
 * One row of an array beside the flows. From a packet's hand-over to its last byte at the port
 * of its destination the parts leave no gap. All in picoseconds.
 */
struct UbFlowAccount
{
    int64_t issuePs;      //!< from the flow's hand-over to the packet ready for a port
    int64_t sourceWaitPs; //!< waiting for a port of the source
    int64_t waitPs[3];    //!< waiting in the first, second and further switches
    int64_t serialisePs;  //!< on the wire
    int64_t propagatePs;  //!< in cables
    int64_t switchPs;     //!< forwarding latency of switches
};

static_assert(sizeof(UbFlowAccount) == 64, "the layout is shared with NumPy");

/**
 * @ingroup ub-fabric
 * @brief A task of a rank as it crosses between Python and C++.
 */
struct UbTaskRecord
{
    int64_t durationPs; //!< in: time before it sends
    int64_t memoryPs;   //!< in: time its die's memory needs, at its full rate, for what it reads
    int64_t readyPs;    //!< out: all tasks it depends on have finished
    int64_t startPs;    //!< out: begins on its stream
    int64_t finishPs;   //!< out: duration over, flows issued, awaited flows seen; -1 before
    int64_t issuedPs;   //!< out: last message of its own issued, -1 if it sends nothing
    int64_t arrivedPs;  //!< out: last awaited flow seen, -1 if it waits for nothing
    double leftPs;      //!< work: what is left of its duration, if it uses the memory
    uint32_t endpoint;  //!< in: node number of its rank's die
    uint32_t stream;    //!< in: number of its stream, over all ranks
    uint32_t depsLeft;  //!< work: tasks it still waits for
    uint32_t flowsLeft; //!< in: flows it waits for
    uint32_t sendFirst; //!< in: first of its flows in the chunk's send order
    uint32_t sendCount; //!< in: number of flows it sends
    uint32_t next;      //!< work: next task of its stream
    uint32_t successor; //!< work: first of the tasks that depend on it
    uint32_t state;     //!< work: see UbTaskGraph
    uint32_t messagePs; //!< in: cost of each message of its flows beside the engine's own
};

static_assert(sizeof(UbTaskRecord) == 104, "the layout is shared with NumPy");

} // namespace ns3

#endif // UB_RECORDS_H
