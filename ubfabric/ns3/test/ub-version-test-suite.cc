/*
 * SPDX-License-Identifier: GPL-2.0-only
 */

#include "ns3/test.h"
#include "ns3/ub-version.h"

using namespace ns3;

/**
 * @ingroup ub-fabric-test
 * @brief The module's TypeIds are registered and its version is stated.
 */
class UbVersionTestCase : public TestCase
{
  public:
    UbVersionTestCase()
        : TestCase("TypeId is registered and the version is not empty")
    {
    }

  private:
    void DoRun() override
    {
        TypeId tid;
        NS_TEST_ASSERT_MSG_EQ(TypeId::LookupByNameFailSafe("ns3::UbVersion", &tid),
                              true,
                              "ns3::UbVersion is not registered");
        NS_TEST_ASSERT_MSG_EQ(tid.GetGroupName(), "UbFabric", "wrong group");
        NS_TEST_ASSERT_MSG_EQ(UbVersion::GetPackageVersion().empty(), false, "no version");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Suite of the module's identity.
 */
class UbVersionTestSuite : public TestSuite
{
  public:
    UbVersionTestSuite()
        : TestSuite("ub-version", Type::UNIT)
    {
        AddTestCase(new UbVersionTestCase, TestCase::Duration::QUICK);
    }
};

static UbVersionTestSuite g_ubVersionTestSuite; ///< registers the suite
